# Sourced by ./serval test. Stages, each a build and a set of ctest labels:
#   tidy     conventions and format                      golden   verify on the reference checkpoints, topology equality
#   unit     every room's tests under ASan and UBSan     sim      the whole cluster from 200 seeds, faults and retries
#   host     ZmqHost and the HTTP front end under TSan   process  the real cluster: up, status, kill, load, down
#   all      all of these
#   lint     clang-tidy over every source but the three of Asio, which clang 14 cannot parse; a quarter of an hour, not in all
# Ends with "N passed, N failed": every test case and every check counts as one.

passed=0
failed=0
failures=''

# count LOG STATUS NAME: adds the cases of a ctest log; a stage that failed without a failing case counts one failure.
count() {
  ok=$(grep -cE '\[       OK \]|^([0-9]+: )?check ok' "$1" || true)
  bad=$(grep -cE '\[  FAILED  \] [A-Za-z_/0-9]+\.[A-Za-z_0-9/]+ \(|^([0-9]+: )?check FAILED' "$1" || true)
  [ "$2" = 0 ] || [ "$bad" != 0 ] || bad=1
  passed=$((passed + ok))
  failed=$((failed + bad))
  if [ "$2" = 0 ]; then
    say "$3: $ok passed"
  else
    failures="$failures $3"
    say "$3: $ok passed, $bad FAILED; the log is $1; its end:"
    grep -v '^ *$' "$1" | tail -n 60 >&2
  fi
}

# stage NAME COMMAND...: runs the command with its output in a log and counts.
stage() {
  name=$1; shift
  mkdir -p "$root/build/test-logs"
  log="$root/build/test-logs/$name.log"
  begun=$(date +%s)
  status=0
  "$@" >"$log" 2>&1 || status=$?
  count "$log" "$status" "$name"
  say "$name: $(($(date +%s) - begun)) s"
}

run_ctest() {  # PRESET LABEL
  folder="$root/build"
  [ "$1" = release ] || folder="$root/build-$1"
  ctest --test-dir "$folder" -L "^$2\$" --output-on-failure --no-tests=error -V -j 2
}

stage_tidy() { stage tidy sh -c 'if "$1/tools/tidy"; then echo "check ok tidy"; else echo "check FAILED tidy"; exit 1; fi' - "$root"; }
stage_lint() {
  install_missing clang-tidy
  build_preset release $processes
  stage lint sh -c 'cd "$1" && git ls-files "*.cc" | grep -vE "^tests/|front_end.cc|http_connection.cc|http_reader.cc" | xargs -P 2 -n 4 clang-tidy -p build --quiet && echo "check ok lint"' - "$root"
}
stage_unit() { build_preset debug unit_tests && stage unit run_ctest debug unit; }
# shellcheck disable=SC2086
stage_golden() { build_preset release $processes golden_tests && stage golden run_ctest release golden; }
stage_sim() {
  build_preset release sim_tests && stage sim run_ctest release sim
  build_preset debug sim_tests && stage sim-asan run_ctest debug sim_asan
}
stage_host() { build_preset tsan host_tests && stage host run_ctest tsan host; }
# shellcheck disable=SC2086
stage_process() { build_preset release $processes process_tests && stage process run_ctest release process; }

run_tests() {
  begun_all=$(date +%s)
  case "$1" in
    tidy|unit|golden|sim|host|process|lint) "stage_$1" ;;
    all) stage_tidy; stage_golden; stage_process; stage_sim; stage_unit; stage_host ;;
    *) die 2 "unknown tests '$1'; there are: tidy unit golden sim host process all lint" ;;
  esac
  say "all stages took $(($(date +%s) - begun_all)) s${failures:+; failed:$failures}"
  printf '%d passed, %d failed\n' "$passed" "$failed"
  [ "$failed" = 0 ]
}
