#include "model/thread_pool.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <thread>
#include <vector>

#include "model/multiply.h"
#include "tests/model/matrices.h"

namespace model {
namespace {

TEST(ThreadPool, RunsEveryTaskOnce) {
  for (uint32_t threads : {1u, 2u, 4u}) {
    ThreadPool pool(threads);
    for (uint32_t n : {0u, 1u, 2u, 3u, 100u, 5000u}) {
      std::vector<uint32_t> done(n);  // each entry written by one task
      pool.run(n, [&](uint32_t i) { ++done[i]; });
      for (uint32_t i = 0; i < n; ++i) ASSERT_EQ(done[i], 1u) << i << " of " << n;
    }
  }
}

TEST(ThreadPool, ATaskMayRunARegionOfItsOwn) {
  ThreadPool pool(3);
  std::vector<uint32_t> done(20 * 30);
  pool.run(20, [&](uint32_t i) { pool.run(30, [&](uint32_t j) { ++done[i * 30 + j]; }); });
  for (uint32_t count : done) ASSERT_EQ(count, 1u);
}

TEST(ThreadPool, ServesTwoCallersAtOnce) {
  ThreadPool pool(2);
  std::atomic<uint64_t> total{0};
  const auto call = [&] {
    for (uint32_t region = 0; region < 2000; ++region) {
      uint32_t done[16] = {};
      pool.run(16, [&](uint32_t i) { done[i] += i + 1; });
      uint64_t sum = 0;
      for (uint32_t value : done) sum += value;
      total += sum;
    }
  };
  std::thread other(call);
  call();
  other.join();
  EXPECT_EQ(total, 2u * 2000 * (16 * 17 / 2));
}

TEST(ThreadPool, WritesOfARegionAreVisibleAfterIt) {
  ThreadPool pool(2);
  uint64_t sum = 0;
  for (uint32_t region = 0; region < 100'000; ++region) {
    uint32_t parts[3] = {};
    pool.run(3, [&](uint32_t i) { parts[i] = region + i; });
    sum += parts[0] + parts[1] + parts[2];
  }
  EXPECT_EQ(sum, 3ull * (99'999ull * 100'000 / 2) + 3 * 100'000);
}

TEST(ThreadPool, ManyComeAndGo) {
  for (int i = 0; i < 300; ++i) {
    ThreadPool pool(3);
    std::atomic<uint32_t> done{0};
    if (i % 3 != 0) pool.run(8, [&](uint32_t) { ++done; });
    EXPECT_EQ(done, i % 3 != 0 ? 8u : 0u);
  }
}

// Two engines' worth of callers on one pool, as an expert service and a sequence owner are.
TEST(ThreadPool, CarriesProductsOfTwoCallers) {
  const uint32_t inputs = 300, outputs = 700, rows = 30;
  const PackedMatrix gate = testing::pack(outputs, inputs, WeightFormat::kF32,
                                          testing::random_values(size_t{inputs} * outputs, 1));
  const PackedMatrix up = testing::pack(outputs, inputs, WeightFormat::kF32,
                                        testing::random_values(size_t{inputs} * outputs, 2));
  const std::vector<float> x = testing::random_values(size_t{inputs} * rows, 3);
  ThreadPool pool(3);
  Integrity integrity;
  const Compute compute{pool, integrity};
  const auto call = [&](std::vector<float>& y) {
    for (int i = 0; i < 20; ++i) {
      const GatedProduct product{&gate, &up, x.data(), rows, y.data()};
      multiply_gated(compute, {&product, 1});
    }
  };
  std::vector<float> a(size_t{outputs} * rows), b(a.size());
  std::thread other([&] { call(b); });
  call(a);
  other.join();
  EXPECT_EQ(a, b);
  EXPECT_EQ(integrity.rows_checked(), 2u * 20 * rows);
  EXPECT_FALSE(integrity.broken());
}

// Work for about as long as a small product takes.
uint64_t churn(uint64_t seed) {
  for (int i = 0; i < 20'000; ++i) seed = seed * 6364136223846793005u + 1442695040888963407u;
  return seed;
}

double seconds_of(ThreadPool& pool) {
  const auto begin = std::chrono::steady_clock::now();
  std::vector<uint64_t> out(64);
  for (int region = 0; region < 100; ++region)
    pool.run(16, [&](uint32_t i) { out[i] = churn(out[i] + i); });
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

// As many spinning threads as cores halve what the pool gets; waiting for a thread that has lost
// its core would cost whole time slices a region, a hundred times as much.
TEST(ThreadPool, ABusyNeighbourCostsItsShare) {
  ThreadPool pool(2);
  const double alone = std::min(seconds_of(pool), seconds_of(pool));
  std::atomic<bool> stop{false};
  std::vector<std::thread> neighbours;
  for (unsigned i = 0; i < std::max(1u, std::thread::hardware_concurrency()); ++i) {
    neighbours.emplace_back([&stop] {
      uint64_t value = 1;
      while (!stop.load(std::memory_order_relaxed)) value = churn(value);
    });
  }
  const double beside = std::min({seconds_of(pool), seconds_of(pool), seconds_of(pool)});
  stop = true;
  for (std::thread& thread : neighbours) thread.join();
  std::printf("100 regions: %.1f ms alone, %.1f ms beside busy threads\n", alone * 1e3,
              beside * 1e3);
  EXPECT_LT(beside, 12 * alone + 0.1);
}

}  // namespace
}  // namespace model
