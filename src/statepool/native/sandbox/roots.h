// The file systems of one slot: a base of sources, and roots above it, each an overlay with a layer of its own.
//
// The host's root is left behind for good when the slot is made. A tenant changes nothing but its layer, which is a tmpfs; a slot is
// made clean by a new layer, never by deleting (a deleted file can stay visible in an overlay's caches).
#pragma once

#include <stdint.h>
#include <sys/types.h>

#include <string>
#include <vector>

namespace statepool::sandbox {

// A step that failed: what is told, and errno.
struct Failed {
  std::string what;
  int error;
};

// Throws `Failed` with errno.
[[noreturn]] void fail(const std::string& step);

// What a slot's file systems are made of: a folder to build them in, the lowest layer, further layers, and folders of the host that
// every root shows read-only at the same path.
struct Plan {
  bool userns;
  std::string folder, skeleton;
  std::vector<std::string> layers, sources;
};

// Size of a layer.
struct Room {
  uint64_t bytes, inodes;
  bool operator!=(const Room& other) const { return bytes != other.bytes || inodes != other.inodes; }
};

struct Root {
  int number = -1;          // its mount is /g/number, its own layer in /u/number
  std::vector<int> layers;  // its own, then those below it, uppermost first
  int fd = -1;
  dev_t device = 0;
  std::string path() const { return "/g/" + std::to_string(number); }
  std::string upper() const { return "/u/" + std::to_string(number) + "/up"; }
};

// Close descriptors in another thread: the last one of a file system frees all of it, which takes 0.3 s for 20,000 files.
void close_later(std::vector<int>&& fds);

// Makes roots and takes them away. For the first process of a slot, in its own mount namespace. Errors are `Failed`.
class Roots {
 public:
  explicit Roots(const Plan& plan);

  // A root as the template has it.
  Root fresh(const Room& room) { return make({}, room); }

  // A root that begins with the files of `root`, whose own layer must not change any more.
  Root above(const Root& root, const Room& room);

  // Take a root away, and every layer that no other root needs. The descriptors that are answered keep its memory: for `close_later`.
  std::vector<int> detach(const Root& root);

  // Give a fresh root to its tenant.
  void own(const Root& root, uint32_t uid) const;

 private:
  Root make(const std::vector<int>& lowers, const Room& room);

  bool userns_;
  std::string base_;                // the lowest layers of every root, as overlay takes them
  std::vector<std::string> binds_;  // sources 0, 1, …, shown at these paths
  int first_bind_;
  std::vector<int> free_;   // numbers of roots that have gone
  std::vector<int> users_;  // of each layer: how many roots see it
};

}  // namespace statepool::sandbox
