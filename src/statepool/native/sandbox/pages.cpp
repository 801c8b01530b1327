#include "pages.h"

#include <Python.h>
#include <fcntl.h>
#include <malloc.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <memory>

namespace statepool::sandbox {
namespace {

constexpr uintptr_t kPage = 4096, kHuge = 2u << 20;
constexpr int kPopulateWrite = 23, kCollapse = 25;  // MADV_, of Linux 5.14 and 6.1
// Bits of /proc/self/pagemap.
constexpr uint64_t kPresent = uint64_t(1) << 63, kOfFile = uint64_t(1) << 61, kExclusive = uint64_t(1) << 56;

std::vector<Stretch> expected;

struct Area {
  uintptr_t begin, end;
  char path[16];
};

std::vector<Area> writable() {
  std::vector<Area> found;
  std::unique_ptr<FILE, int (*)(FILE*)> maps(fopen("/proc/self/maps", "re"), fclose);
  char line[4352];
  while (maps && fgets(line, sizeof line, maps.get())) {
    Area area{};
    char rights[5];
    if (sscanf(line, "%lx-%lx %4s %*s %*s %*s %15s", &area.begin, &area.end, rights, area.path) >= 3 && !strcmp(rights, "rw-p"))
      found.push_back(area);
  }
  return found;
}

}  // namespace

std::vector<Stretch> written() {
  std::vector<Stretch> found;
  const int map = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
  if (map < 0) return found;
  for (const Area& area : writable()) {
    for (uintptr_t at = area.begin; at < area.end;) {
      uint64_t entries[256];
      const size_t wanted = std::min<size_t>(256, (area.end - at) / kPage) * 8;
      const ssize_t got = pread(map, entries, wanted, off_t(at / kPage * 8));
      if (got < 8) break;
      for (ssize_t i = 0; i < got / 8; ++i, at += kPage) {
        if ((entries[i] & (kPresent | kOfFile | kExclusive)) != (kPresent | kExclusive)) continue;
        if (!found.empty() && found.back().first + found.back().second == at)
          found.back().second += kPage;
        else
          found.emplace_back(at, kPage);
      }
    }
  }
  close(map);
  return found;
}

void expect_writes(std::vector<Stretch> stretches) { expected = std::move(stretches); }

void copy_expected() {
  for (const auto& [begin, length] : expected) madvise(reinterpret_cast<void*>(begin), length, kPopulateWrite);
}

int collapse() {
  int made = 0;
  for (const Area& area : writable()) {
    if (*area.path && strcmp(area.path, "[heap]")) continue;
    for (uintptr_t at = (area.begin + kHuge - 1) & ~(kHuge - 1); at + kHuge <= area.end; at += kHuge)
      if (!madvise(reinterpret_cast<void*>(at), kHuge, kCollapse)) ++made;  // an older Linux says no, as for empty memory
  }
  return made;
}

void fill_holes() {
  constexpr size_t kPool = 16 << 10, kHead = 48, kMost = 4 << 20;  // of Python's small objects
  for (size_t size = 16; size <= 512; size += 16)
    for (size_t taken = 0; taken < kMost; taken += size)
      if (reinterpret_cast<uintptr_t>(PyObject_Malloc(size)) % kPool == kHead) break;  // the first of a new pool
#if defined(__GLIBC__) && __GLIBC_PREREQ(2, 33)
  const uintptr_t top = reinterpret_cast<uintptr_t>(sbrk(0)) - mallinfo2().keepcost;
  for (size_t size = 64 << 10; size >= 16;) {
    void* got = malloc(size - 8);
    if (reinterpret_cast<uintptr_t>(got) < top) continue;
    free(got);
    size -= size > 2048 ? size / 2 : 16;
  }
#endif
}

}  // namespace statepool::sandbox
