// Blocks on their way: copied or received with the checksum of what arrived, in one pass and without the GIL.
#include "checksum.h"

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/vector.h>
#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>
#include <vector>

#include "arrays.h"

namespace nb = nanobind;

namespace statepool {

const uint8_t kSecret[192] = {
    0xb8, 0xfe, 0x6c, 0x39, 0x23, 0xa4, 0x4b, 0xbe, 0x7c, 0x01, 0x81, 0x2c, 0xf7, 0x21, 0xad, 0x1c,
    0xde, 0xd4, 0x6d, 0xe9, 0x83, 0x90, 0x97, 0xdb, 0x72, 0x40, 0xa4, 0xa4, 0xb7, 0xb3, 0x67, 0x1f,
    0xcb, 0x79, 0xe6, 0x4e, 0xcc, 0xc0, 0xe5, 0x78, 0x82, 0x5a, 0xd0, 0x7d, 0xcc, 0xff, 0x72, 0x21,
    0xb8, 0x08, 0x46, 0x74, 0xf7, 0x43, 0x24, 0x8e, 0xe0, 0x35, 0x90, 0xe6, 0x81, 0x3a, 0x26, 0x4c,
    0x3c, 0x28, 0x52, 0xbb, 0x91, 0xc3, 0x00, 0xcb, 0x88, 0xd0, 0x65, 0x8b, 0x1b, 0x53, 0x2e, 0xa3,
    0x71, 0x64, 0x48, 0x97, 0xa2, 0x0d, 0xf9, 0x4e, 0x38, 0x19, 0xef, 0x46, 0xa9, 0xde, 0xac, 0xd8,
    0xa8, 0xfa, 0x76, 0x3f, 0xe3, 0x9c, 0x34, 0x3f, 0xf9, 0xdc, 0xbb, 0xc7, 0xc7, 0x0b, 0x4f, 0x1d,
    0x8a, 0x51, 0xe0, 0x4b, 0xcd, 0xb4, 0x59, 0x31, 0xc8, 0x9f, 0x7e, 0xc9, 0xd9, 0x78, 0x73, 0x64,
    0xea, 0xc5, 0xac, 0x83, 0x34, 0xd3, 0xeb, 0xc3, 0xc5, 0x81, 0xa0, 0xff, 0xfa, 0x13, 0x63, 0xeb,
    0x17, 0x0d, 0xdd, 0x51, 0xb7, 0xf0, 0xda, 0x49, 0xd3, 0x16, 0x55, 0x26, 0x29, 0xd4, 0x68, 0x9e,
    0x2b, 0x16, 0xbe, 0x58, 0x7d, 0x47, 0xa1, 0xfc, 0x8f, 0xf8, 0xb8, 0xd1, 0x7a, 0xd0, 0x31, 0xce,
    0x45, 0xcb, 0x3a, 0x8f, 0x95, 0x16, 0x04, 0x28, 0xaf, 0xd7, 0xfb, 0xca, 0xbb, 0x4b, 0x40, 0x7e,
};

namespace {

constexpr uint64_t kPrime64_1 = 0x9E3779B185EBCA87u, kPrime64_2 = 0xC2B2AE3D27D4EB4Fu, kPrime64_3 = 0x165667B19E3779F9u,
                   kPrime64_4 = 0x85EBCA77C2B2AE63u, kPrime64_5 = 0x27D4EB2F165667C5u, kPrime32_1 = 0x9E3779B1u,
                   kPrime32_2 = 0x85EBCA77u, kPrime32_3 = 0xC2B2AE3Du;
constexpr int64_t kShortest = 241;        // below, XXH3 is another function
constexpr int64_t kPiece = 256 << 10;     // received at once, so that it is mixed while it is in the cache
constexpr int64_t kPastCaches = 256 << 10;  // copies from here on do not push everything else out of the caches

uint64_t read64(const uint8_t* p) {
  uint64_t value;
  std::memcpy(&value, p, sizeof value);
  return value;
}

uint64_t folded(uint64_t a, uint64_t b) {
  const unsigned __int128 product = static_cast<unsigned __int128>(a) * b;
  return static_cast<uint64_t>(product) ^ static_cast<uint64_t>(product >> 64);
}

// The checksum of `size` bytes at `data`, which come in order.
class Checksum {
 public:
  Checksum(const uint8_t* data, int64_t size) : data_(data), size_(size), segments_((size - 1) / kSegment) {}

  // The first `count` bytes are there.
  void arrived(int64_t count) {
    const int64_t whole = std::min(count / kSegment, segments_) - done_;
    if (whole <= 0) return;
    checksum_kernels().segments(lanes_, data_ + done_ * kSegment, nullptr, whole, false);
    done_ += whole;
  }

  // Brings the bytes there itself.
  void copy(const uint8_t* source, uint8_t* target) {
    const bool past = size_ >= kPastCaches && reinterpret_cast<uintptr_t>(target) % 32 == 0;
    checksum_kernels().segments(lanes_, source, target, segments_, past);
    done_ = segments_;
    std::memcpy(target + done_ * kSegment, source + done_ * kSegment, static_cast<size_t>(size_ - done_ * kSegment));
  }

  uint64_t value() {
    arrived(size_);
    const int64_t at = segments_ * kSegment;
    checksum_kernels().stripes(lanes_, data_ + at, (size_ - 1 - at) / kStripe, 0);
    checksum_kernels().stripes(lanes_, data_ + size_ - kStripe, 1, 121);
    uint64_t sum = static_cast<uint64_t>(size_) * kPrime64_1;
    for (int i = 0; i < 8; i += 2)
      sum += folded(lanes_[i] ^ read64(kSecret + 11 + 8 * i), lanes_[i + 1] ^ read64(kSecret + 19 + 8 * i));
    sum = (sum ^ (sum >> 37)) * 0x165667919E3779F9u;
    return sum ^ (sum >> 32);
  }

 private:
  const uint8_t* data_;
  int64_t size_, segments_, done_ = 0;
  uint64_t lanes_[8] = {kPrime32_3, kPrime64_1, kPrime64_2, kPrime64_3, kPrime64_4, kPrime32_2, kPrime64_5, kPrime32_1};
};

using Source = nb::ndarray<const uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Target = nb::ndarray<uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

uint64_t copy_checked(Source source, Target target) {
  const int64_t size = static_cast<int64_t>(source.size());
  require(size >= kShortest, "source: must have more than 240 bytes");
  require(target.size() == source.size(), "target: must have as many bytes as source");
  Checksum sum(target.data(), size);
  sum.copy(source.data(), target.data());
  return sum.value();
}

// Fills the targets one after the other: their checksums, and 0, the errno of what ended it early, or -1 where the
// other side has closed.
std::pair<std::vector<uint64_t>, int> receive_checked(int fd, const std::vector<Target>& targets, double timeout_s) {
  for (const Target& target : targets)
    require(static_cast<int64_t>(target.size()) >= kShortest, "targets: must have more than 240 bytes each");
  std::vector<uint64_t> sums;
  nb::gil_scoped_release release;
  for (const Target& target : targets) {
    const int64_t size = static_cast<int64_t>(target.size());
    Checksum sum(target.data(), size);
    for (int64_t got = 0; got < size;) {
      const ssize_t count = recv(fd, target.data() + got, static_cast<size_t>(std::min(size - got, kPiece)), 0);
      if (count == 0) return {sums, -1};
      if (count > 0) {
        got += count;
        sum.arrived(got);
        continue;
      }
      if (errno == EINTR) continue;
      if (errno != EAGAIN && errno != EWOULDBLOCK) return {sums, errno};
      pollfd ready{fd, POLLIN, 0};
      const int found = poll(&ready, 1, static_cast<int>(timeout_s * 1e3));
      if (found == 0) return {sums, ETIMEDOUT};
      if (found < 0 && errno != EINTR) return {sums, errno};
    }
    sums.push_back(sum.value());
  }
  return {sums, 0};
}

}  // namespace
}  // namespace statepool

void bind_checksum(nb::module_& m) {
  m.def("copy_checked", &statepool::copy_checked, nb::arg("source").noconvert(), nb::arg("target").noconvert(),
        nb::call_guard<nb::gil_scoped_release>(),
        "Copy more than 240 bytes; the XXH3-64 of what was written.");
  m.def("receive_checked", &statepool::receive_checked, nb::arg("fd"), nb::arg("targets"), nb::arg("timeout_s"),
        "Fill targets, of more than 240 bytes each, from a socket: their XXH3-64, and 0, an errno, or -1 at its end.");
}
