#include "model/config.h"

#include <bit>
#include <cmath>
#include <initializer_list>

#include "model/json.h"

namespace model {
namespace {

using base::Code;
using base::fail;
using base::Result;
using base::Status;
using Names = std::initializer_list<const char*>;

// Bounds that no real model comes near and that keep every size computed from them inside 64 bits.
constexpr uint32_t kVocabMost = 1u << 24;
constexpr uint32_t kWidthMost = 1u << 20;
constexpr uint32_t kLayersMost = 1024;
constexpr uint32_t kHeadsMost = 4096;
constexpr uint32_t kExpertsMost = 4096;
constexpr uint32_t kPositionsMost = 1u << 30;
constexpr double kRatioMost = 65536;

// Typed access to the fields of one object of config.json. A field has one or more names; null
// counts as absent; an error names the file and the field.
class Fields {
 public:
  Fields(const Json& object, std::string file) : object_(object), file_(std::move(file)) {}

  const Json* find(Names names) const {
    for (const char* name : names)
      if (const Json* value = object_.find(name)) return value;
    return nullptr;
  }
  template <class... Args>
  tl::unexpected<base::Error> complain(Code code, Names names, fmt::format_string<Args...> text,
                                       Args&&... args) const {
    const char* name = *names.begin();
    for (const char* candidate : names)
      if (object_.find(candidate)) {
        name = candidate;
        break;
      }
    return fail(code, "{}: field \"{}\" {}", file_, name,
                fmt::format(text, std::forward<Args>(args)...));
  }

  Result<uint32_t> count(Names names, uint32_t least, uint32_t most) const {
    const Json* value = find(names);
    if (!value) return complain(Code::kCorrupt, names, "is missing");
    if (!value->is(Json::Kind::kInteger) || value->integer < least || value->integer > most)
      return complain(Code::kCorrupt, names, "must be an integer from {} to {}", least, most);
    return static_cast<uint32_t>(value->integer);
  }
  Result<uint32_t> count_or(Names names, uint32_t otherwise, uint32_t least, uint32_t most) const {
    if (!find(names)) return otherwise;
    return count(names, least, most);
  }
  Result<double> real(Names names, double least, double most) const {
    const Json* value = find(names);
    if (!value) return complain(Code::kCorrupt, names, "is missing");
    const bool number = value->is(Json::Kind::kInteger) || value->is(Json::Kind::kReal);
    if (!number || !(value->real >= least && value->real <= most))
      return complain(Code::kCorrupt, names, "must be a number from {} to {}", least, most);
    return value->real;
  }
  Result<double> real_or(Names names, double otherwise, double least, double most) const {
    if (!find(names)) return otherwise;
    return real(names, least, most);
  }
  Result<bool> boolean(Names names) const {
    const Json* value = find(names);
    if (!value) return complain(Code::kCorrupt, names, "is missing");
    if (!value->is(Json::Kind::kBool))
      return complain(Code::kCorrupt, names, "must be true or false");
    return value->boolean;
  }
  Result<bool> boolean_or(Names names, bool otherwise) const {
    if (!find(names)) return otherwise;
    return boolean(names);
  }
  // A field that Serval reads only to refuse all values but one.
  Status only_text(Names names, std::string_view text) const {
    const Json* value = find(names);
    if (!value || (value->is(Json::Kind::kText) && value->text == text)) return {};
    return complain(Code::kUnsupported, names, "must be \"{}\"", text);
  }
  Status only_flag(Names names, bool flag) const {
    if (TRY(boolean_or(names, flag)) == flag) return {};
    return complain(Code::kUnsupported, names, "must be {}", flag);
  }
  const std::string& file() const { return file_; }

 private:
  const Json& object_;
  std::string file_;
};

Result<Variant> parse_variant(const Fields& fields) {
  static constexpr struct {
    const char* architecture;
    const char* model_type;
    Variant variant;
  } kKnown[] = {{"LongcatFlashForCausalLM", "longcat_flash", Variant::kFlash},
                {"LongcatFlashNgramForCausalLM", "longcat_flash_ngram", Variant::kFlashNgram},
                {"LongcatCausalLM", "longcat", Variant::kLongcat}};
  if (const Json* list = fields.find({"architectures"}); list && !list->list.empty()) {
    const std::string& name = list->list[0].text;
    for (const auto& known : kKnown)
      if (name == known.architecture) return known.variant;
    return fields.complain(Code::kUnsupported, {"architectures"}, "\"{}\" is no LongCat model",
                           name);
  }
  const Json* type = fields.find({"model_type"});
  if (!type) return fields.complain(Code::kCorrupt, {"architectures"}, "is missing");
  for (const auto& known : kKnown)
    if (type->text == known.model_type) return known.variant;
  return fields.complain(Code::kUnsupported, {"model_type"}, "\"{}\" is no LongCat model",
                         type->text);
}

Status parse_sizes(const Fields& fields, ModelConfig* config) {
  config->vocab = TRY(fields.count({"vocab_size"}, 1, kVocabMost));
  config->hidden = TRY(fields.count({"hidden_size"}, 1, kWidthMost));
  config->ffn = TRY(fields.count({"ffn_hidden_size"}, 1, kWidthMost));
  config->expert_ffn = TRY(fields.count({"expert_ffn_hidden_size"}, 1, kWidthMost));
  // num_hidden_layers counts attentions, two in each layer.
  if (fields.find({"num_layers"})) {
    config->layers = TRY(fields.count({"num_layers"}, 1, kLayersMost));
  } else {
    const uint32_t attentions =
        TRY(fields.count({"num_layers", "num_hidden_layers"}, 1, kLayersMost));
    if (attentions % 2 != 0)
      return fields.complain(Code::kCorrupt, {"num_hidden_layers"},
                             "must be even where num_layers is absent");
    config->layers = attentions / 2;
  }
  config->max_position = TRY(fields.count({"max_position_embeddings"}, 1, kPositionsMost));
  config->rms_eps = TRY(fields.real_or({"rms_norm_eps"}, 1e-5, 1e-12, 1));
  // The first-party classes do not pass an eps to the two low-rank norms: they run at their
  // default.
  config->lora_norm_eps = TRY(fields.real_or({"lora_norm_eps"}, 1e-6, 1e-12, 1));
  TRY(fields.only_text({"hidden_act"}, "silu"));
  TRY(fields.only_flag({"tie_word_embeddings"}, false));
  TRY(fields.only_flag({"attention_bias"}, false));
  return {};
}

Status parse_token_ids(const Fields& fields, ModelConfig* config) {
  config->bos = TRY(fields.count_or({"bos_token_id"}, 1, 0, config->vocab - 1));
  const Json* eos = fields.find({"eos_token_id"});
  if (!eos) return fields.complain(Code::kCorrupt, {"eos_token_id"}, "is missing");
  const auto accept = [config](const Json& id) {
    if (!id.is(Json::Kind::kInteger) || id.integer < 0 || id.integer >= config->vocab) return false;
    config->eos.push_back(static_cast<uint32_t>(id.integer));
    return true;
  };
  bool good = !eos->is(Json::Kind::kList) ? accept(*eos) : !eos->list.empty();
  for (const Json& id : eos->list) good = good && accept(id);
  if (good) return {};
  return fields.complain(Code::kCorrupt, {"eos_token_id"},
                         "must be a token id below vocab_size, or a list of such");
}

Status parse_attention(const Fields& fields, ModelConfig* config) {
  config->heads = TRY(fields.count({"num_attention_heads"}, 1, kHeadsMost));
  config->q_lora = TRY(fields.count({"q_lora_rank"}, 1, kWidthMost));
  config->kv_lora = TRY(fields.count({"kv_lora_rank"}, 1, kWidthMost));
  config->nope = TRY(fields.count({"qk_nope_head_dim"}, 1, kWidthMost));
  config->rope = TRY(fields.count({"qk_rope_head_dim"}, 2, kWidthMost));
  config->v_dim = TRY(fields.count({"v_head_dim"}, 1, kWidthMost));
  config->scale_q_lora = TRY(fields.boolean({"mla_scale_q_lora"}));
  config->scale_kv_lora = TRY(fields.boolean({"mla_scale_kv_lora"}));
  if (config->rope % 2 != 0)
    return fields.complain(Code::kCorrupt, {"qk_rope_head_dim"}, "must be even");
  return {};
}

Status parse_moe(const Fields& fields, ModelConfig* config) {
  config->experts = TRY(fields.count({"n_routed_experts"}, 1, kExpertsMost));
  config->zero_experts = TRY(fields.count_or({"zero_expert_num"}, 0, 0, kExpertsMost - 1));
  config->topk = TRY(fields.count({"moe_topk"}, 1, config->experts + config->zero_experts));
  config->routed_scaling = TRY(fields.real({"routed_scaling_factor"}, 1e-6, 1e6));
  config->norm_topk_prob = TRY(fields.boolean_or({"norm_topk_prob"}, false));
  config->router_bias = TRY(fields.boolean_or({"router_bias"}, false));
  if (config->zero_experts > 0) TRY(fields.only_text({"zero_expert_type"}, "identity"));
  return {};
}

// rope_theta may stand beside rope_scaling or, in newer files, inside rope_parameters.
Status parse_rope(const Fields& fields, ModelConfig* config) {
  const Names scaling_names = {"rope_scaling", "rope_parameters"};
  const Json* scaling = fields.find(scaling_names);
  if (scaling && !scaling->is(Json::Kind::kMap))
    return fields.complain(Code::kCorrupt, scaling_names, "must be an object or null");
  const Json none;
  const Fields inner(
      scaling ? *scaling : none,
      fields.file() + ": " + (fields.find({"rope_scaling"}) ? "rope_scaling" : "rope_parameters"));
  const bool inside = !fields.find({"rope_theta"}) && inner.find({"rope_theta"});
  config->rope_theta = TRY((inside ? inner : fields).real({"rope_theta"}, 1, 1e15));
  if (!scaling) return {};
  const Json* type = inner.find({"rope_type", "type"});
  if (!type) return inner.complain(Code::kCorrupt, {"rope_type"}, "is missing");
  if (type->text == "default") return {};
  if (type->text != "yarn" && type->text != "deepseek_yarn")
    return inner.complain(Code::kUnsupported, {"rope_type", "type"},
                          "is \"{}\"; known are yarn and deepseek_yarn", type->text);
  if (inner.find({"attention_factor"}))
    return inner.complain(Code::kUnsupported, {"attention_factor"}, "is not offered");
  YarnConfig yarn;
  yarn.factor = TRY(inner.real({"factor"}, 1, 1e6));
  yarn.beta_fast = TRY(inner.real_or({"beta_fast"}, 32, 1e-3, 1e6));
  yarn.beta_slow = TRY(inner.real_or({"beta_slow"}, 1, 1e-3, 1e6));
  yarn.mscale = TRY(inner.real_or({"mscale"}, 1, 0, 1e3));
  yarn.mscale_all_dim = TRY(inner.real_or({"mscale_all_dim"}, 0, 0, 1e3));
  // No default: a guess would shift every frequency without a sign of it.
  yarn.original_max_position =
      TRY(inner.count({"original_max_position_embeddings"}, 1, kPositionsMost));
  config->yarn = yarn;
  return {};
}

Status parse_ngram(const Fields& fields, ModelConfig* config) {
  const Names ratio = {"oe_vocab_size_ratio", "ngram_vocab_size_ratio"};
  if (!fields.find(ratio)) {
    if (config->variant == Variant::kFlashNgram)
      return fields.complain(Code::kCorrupt, {"ngram_vocab_size_ratio"}, "is missing");
    return {};
  }
  NgramConfig ngram;
  ngram.oe_names = fields.find({"oe_vocab_size_ratio"}) != nullptr;
  ngram.ratio = TRY(fields.real(ratio, 0, kRatioMost));
  ngram.order = TRY(fields.count({"oe_neighbor_num", "emb_neighbor_num"}, 2, 64));
  ngram.splits = TRY(fields.count({"oe_split_num", "emb_split_num"}, 1, 1024));
  if (std::trunc(ngram.ratio * config->vocab) < 1)
    return fields.complain(Code::kCorrupt, ratio, "gives tables without rows");
  if (config->hidden % ngram.tables() != 0)
    return fields.complain(Code::kCorrupt, {"hidden_size"},
                           "{} is no multiple of the {} n-gram tables", config->hidden,
                           ngram.tables());
  config->ngram = ngram;
  return {};
}

Status parse_indexer(const Fields& fields, ModelConfig* config) {
  if (!fields.find({"index_topk"})) return {};
  IndexerConfig index;
  index.topk = TRY(fields.count({"index_topk"}, 1, kPositionsMost));
  index.heads = TRY(fields.count({"index_n_heads"}, 1, kHeadsMost));
  index.head_dim = TRY(fields.count({"index_head_dim"}, 1, kWidthMost));
  index.init_tokens = TRY(fields.count_or({"index_init_tokens"}, 0, 0, index.topk));
  index.local_tokens = TRY(fields.count_or({"index_local_tokens"}, 0, 0, index.topk));
  index.cli_factor = TRY(fields.count_or({"cli_factor"}, 2, 1, kLayersMost));
  index.rope_interleave = TRY(fields.boolean_or({"indexer_rope_interleave"}, true));
  index.k_norm_eps = TRY(fields.real_or({"index_k_norm_eps"}, 1e-6, 1e-12, 1));
  TRY(fields.only_text({"index_k_norm_type"}, "rms"));
  if (index.cli_factor != 2)
    return fields.complain(Code::kUnsupported, {"cli_factor"}, "must be 2");
  if (index.head_dim < config->rope)
    return fields.complain(Code::kCorrupt, {"index_head_dim"},
                           "must be at least qk_rope_head_dim, {}", config->rope);
  if (uint64_t{index.init_tokens} + index.local_tokens > index.topk)
    return fields.complain(Code::kCorrupt, {"index_topk"},
                           "is below index_init_tokens plus index_local_tokens");
  config->indexer = index;
  return {};
}

Status parse_mtp(const Fields& fields, ModelConfig* config) {
  config->mtp_layers = TRY(fields.count_or({"mtp_num_layers"}, 0, 0, 16));
  if (config->mtp_layers > 1 && !TRY(fields.boolean_or({"mtp_replicate_modules"}, true)))
    return fields.complain(Code::kUnsupported, {"mtp_replicate_modules"},
                           "must be true: one MTP block is applied several times");
  return {};
}

Status parse_quantisation(const Fields& fields, ModelConfig* config) {
  const Json* object = fields.find({"quantization_config"});
  if (!object) return {};
  const Fields inner(*object, fields.file() + ": quantization_config");
  const Json* method = inner.find({"quant_method"});
  if (!method) return inner.complain(Code::kCorrupt, {"quant_method"}, "is missing");
  for (const char* int8 : {"int8", "w8a8_int8", "compressed-tensors"})
    if (method->text == int8) return {};  // int8 with weight_scale shows in the tensors themselves
  if (method->text == "int4") {
    config->int4_group = TRY(inner.count({"group_size"}, 32, 128));
    if (!std::has_single_bit(config->int4_group))
      return inner.complain(Code::kUnsupported, {"group_size"}, "must be 32, 64 or 128");
    return inner.only_flag({"symmetric"}, true);
  }
  if (method->text != "fp8")
    return inner.complain(Code::kUnsupported, {"quant_method"},
                          "is \"{}\"; known are fp8, int8 and int4", method->text);
  TRY(inner.only_text({"fmt"}, "e4m3"));
  const Json* block = inner.find({"weight_block_size"});
  if (!block || block->list.size() != 2 || !block->list[0].is(Json::Kind::kInteger) ||
      block->list[0].integer != block->list[1].integer || block->list[0].integer < 1 ||
      block->list[0].integer > kWidthMost)
    return inner.complain(Code::kUnsupported, {"weight_block_size"}, "must be [n, n]");
  config->fp8_blocks = true;
  config->fp8_block = static_cast<uint32_t>(block->list[0].integer);
  return {};
}

}  // namespace

uint64_t ModelConfig::ngram_rows(uint32_t i) const {
  // The ratio may be a fraction: truncated after multiplying, in double as the publisher does.
  return static_cast<uint64_t>(ngram->ratio * vocab) + 2 * uint64_t{i} + 1;
}

double ModelConfig::softmax_scale() const {
  double scale = 1 / std::sqrt(static_cast<double>(nope) + rope);
  if (yarn && yarn->factor > 1) {
    const double g = 0.1 * yarn->mscale_all_dim * std::log(yarn->factor) + 1;
    scale *= g * g;
  }
  return scale;
}

base::Result<ModelConfig> ModelConfig::parse(const std::string& json, const std::string& file) {
  const Json root = TRY(parse_json(json, file));
  if (!root.is(Json::Kind::kMap)) return fail(Code::kCorrupt, "{}: is no JSON object", file);
  const Fields fields(root, file);
  ModelConfig config;
  config.variant = TRY(parse_variant(fields));
  TRY(parse_sizes(fields, &config));
  TRY(parse_token_ids(fields, &config));
  TRY(parse_attention(fields, &config));
  TRY(parse_moe(fields, &config));
  TRY(parse_rope(fields, &config));
  TRY(parse_ngram(fields, &config));
  TRY(parse_indexer(fields, &config));
  TRY(parse_mtp(fields, &config));
  TRY(parse_quantisation(fields, &config));
  return config;
}

base::Result<ModelConfig> ModelConfig::load(const std::string& folder) {
  const std::string file = folder + "/config.json";
  const std::string text = TRY(read_file(file, /*limit=*/16 << 20));
  return parse(text, file);
}

}  // namespace model
