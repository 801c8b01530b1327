#include "pages.h"

#include <Python.h>
#include <fcntl.h>
#include <malloc.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <memory>

namespace statepool::sandbox {
namespace {

constexpr uintptr_t kPage = 4096, kHuge = 2u << 20, kNear = 16 * kPage, kWhole = ~uintptr_t(0) >> 1;
constexpr int kPopulateRead = 22, kPopulateWrite = 23, kCollapse = 25;  // MADV_, of Linux 5.14 and 6.1
constexpr int kFutureWrite = 0x10;  // F_SEAL_, of Linux 5.1
// Bits of /proc/self/pagemap.
constexpr uint64_t kPresent = uint64_t(1) << 63, kOfFile = uint64_t(1) << 61, kExclusive = uint64_t(1) << 56;

std::vector<Stretch> expected;

struct Area {
  uintptr_t begin, end, at;  // where it begins in its file
  ino_t inode;
  char path[16];
  bool constant, code;
};

// Private memory that can be read.
std::vector<Area> areas() {
  std::vector<Area> found;
  std::unique_ptr<FILE, int (*)(FILE*)> maps(fopen("/proc/self/maps", "re"), fclose);
  char line[4352];
  while (maps && fgets(line, sizeof line, maps.get())) {
    Area area{};
    char rights[5];
    if (sscanf(line, "%lx-%lx %4s %lx %*s %lu %15s", &area.begin, &area.end, rights, &area.at, &area.inode, area.path) < 5) continue;
    area.constant = rights[1] == '-';
    area.code = rights[2] == 'x';
    if (rights[0] == 'r' && rights[3] == 'p') found.push_back(area);
  }
  return found;
}

// Pages between two addresses that are no file's, and with `exclusive` nobody else's; those at most `near` bytes apart as one stretch,
// and with kWhole all there is as soon as there is one.
std::vector<Stretch> own(uintptr_t begin, uintptr_t end, uint64_t exclusive, uintptr_t near) {
  std::vector<Stretch> found;
  uintptr_t at = begin;
  const int map = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
  while (map >= 0 && at < end) {
    uint64_t entries[256];
    const size_t wanted = std::min<size_t>(256, (end - at) / kPage) * 8;
    const ssize_t got = pread(map, entries, wanted, off_t(at / kPage * 8));
    if (got < 8) break;
    for (ssize_t i = 0; i < got / 8; ++i, at += kPage) {
      if ((entries[i] & (kPresent | kOfFile | exclusive)) != (kPresent | exclusive)) continue;
      if (!found.empty() && found.back().first + found.back().second + near >= at)
        found.back().second = at + kPage - found.back().first;
      else
        found.emplace_back(at, kPage);
    }
  }
  if (map >= 0) close(map);
  if (near == kWhole && !found.empty()) found = {{begin, end - begin}};
  return found;
}

struct Piece {
  uintptr_t begin, length;
  off_t at;  // in the file, the same distance from a multiple of 2 MiB, so that such pages can be mapped
  int rights;
};

std::vector<Piece> pieces;
char* image;  // the file, for reading
size_t image_bytes;
ino_t image_inode;

// What of the pieces is the file's still: who frees memory and asks for more may get the same addresses, and pages there that hold what
// the file does could not go back to it.
std::vector<Piece> still_there() {
  std::vector<Piece> found;
  for (const Area& area : areas())
    for (const Piece& piece : pieces) {
      const uintptr_t begin = std::max(area.begin, piece.begin), end = std::min(area.end, piece.begin + piece.length);
      const uintptr_t at = uintptr_t(piece.at) + begin - piece.begin;
      if (begin < end && area.inode == image_inode && area.at + begin - area.begin == at)
        found.push_back({begin, end - begin, off_t(at), piece.rights});
    }
  return found;
}

// Where in the file to go on: right behind the last piece if that is so in memory too, since both are one mapping then.
off_t place(uintptr_t begin, off_t end) {
  if (!pieces.empty() && pieces.back().begin + pieces.back().length == begin) return end;
  return off_t((uintptr_t(end) + kHuge - 1) & ~(kHuge - 1)) + off_t(begin % kHuge);
}

// Let constants beside the code of a library be as executable as that: then they are one mapping, and each costs a fork 0.9 µs.
void join_constants() {
  Area last{};
  for (const Area& area : areas()) {
    const bool next = last.end == area.begin && last.inode == area.inode && last.at + last.end - last.begin == area.at;
    const bool join = next && area.code != last.code && area.constant && last.constant && *area.path == '/';
    const Area plain = area.code ? last : area;
    last = area;
    last.code |= join && !mprotect(reinterpret_cast<void*>(plain.begin), plain.end - plain.begin, PROT_READ | PROT_EXEC);
  }
}

bool one_thread() {
  struct stat tasks;
  return !stat("/proc/self/task", &tasks) && tasks.st_nlink == 3;
}

}  // namespace

std::vector<Stretch> written() {
  std::vector<Stretch> found;
  for (const Area& area : areas()) {
    if (area.constant) continue;
    const auto more = own(area.begin, area.end, kExclusive, 0);
    found.insert(found.end(), more.begin(), more.end());
  }
  return found;
}

void expect_writes(std::vector<Stretch> stretches) { expected = std::move(stretches); }

void copy_expected() {
  for (const auto& [begin, length] : expected) madvise(reinterpret_cast<void*>(begin), length, kPopulateWrite);
}

void seal() {
  off_t end = 0;
  for (const Area& area : areas()) {
    if (!strcmp(area.path, "[stack]") || area.code) continue;
    // Of a library's data all, or what is left of it would still be copied with the entries of its pages.
    // Where malloc has mapped a large block of its own (so it begins: zero, and a whole number of pages with bit 1), its first page stays
    // as it is: realloc copies two mappings, and would move one, with what follows it in the file or past the file's end.
    for (const auto& [begin, length] : own(area.begin, area.end, 0, *area.path == '/' ? kWhole : kNear))
      for (uintptr_t from = begin, at = begin; at <= begin + length; at += kPage) {
        const auto* word = reinterpret_cast<const uint64_t*>(at);
        if (at < begin + length && (*area.path || word[0] || word[1] % kPage != 2)) continue;
        if (from < at) pieces.push_back({from, at - from, end = place(from, end), area.constant ? PROT_READ : PROT_READ | PROT_WRITE});
        end += from < at ? off_t(at - from) : 0;
        from = at + kPage;
      }
  }
  const int file = memfd_create("template", MFD_CLOEXEC | MFD_ALLOW_SEALING);
  if (file < 0 || ftruncate(file, end)) return;
  void* there = mmap(nullptr, size_t(end), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  const bool sealed = !fcntl(file, F_ADD_SEALS, kFutureWrite | F_SEAL_GROW | F_SEAL_SHRINK | F_SEAL_SEAL);
  void* shown = mmap(nullptr, size_t(end), PROT_READ, MAP_SHARED, file, 0);
  if (there == MAP_FAILED || shown == MAP_FAILED || !sealed) return void(close(file));
  struct stat made;
  if (fstat(file, &made)) return void(close(file));
  image = static_cast<char*>(shown);
  image_bytes = size_t(end);
  image_inode = made.st_ino;
  // From here until all is mapped nothing but the stack may change: what is copied already would be lost.
  for (const Piece& piece : pieces) memcpy(static_cast<char*>(there) + piece.at, reinterpret_cast<void*>(piece.begin), piece.length);
  for (const Piece& piece : pieces)
    if (mmap(reinterpret_cast<void*>(piece.begin), piece.length, piece.rights, MAP_PRIVATE | MAP_FIXED, file, piece.at) == MAP_FAILED) _exit(1);
  munmap(there, size_t(end));
  close(file);
  for (const Piece& piece : pieces) {
    const uintptr_t first = (piece.begin + kHuge - 1) & ~(kHuge - 1), last = (piece.begin + piece.length) & ~(kHuge - 1);
    if (first < last) madvise(reinterpret_cast<void*>(first), last - first, kCollapse);  // an older Linux says no
    madvise(reinterpret_cast<void*>(piece.begin), piece.length, kPopulateRead);
  }
  join_constants();
}

void give_back() {
  if (!image || !one_thread()) return;
  const uint64_t all = ~uint64_t(0);
  uint64_t before = 0;
  syscall(SYS_rt_sigprocmask, SIG_SETMASK, &all, &before, 8);  // a handler's writes would be lost
  const uintptr_t mine = reinterpret_cast<uintptr_t>(__builtin_thread_pointer()) & ~(kPage - 1);  // the kernel writes there
  const std::vector<Piece> left = still_there();
  void* again = mremap(image, 0, image_bytes, MREMAP_MAYMOVE);  // a mapping of its own: its page tables go with it
  for (size_t i = 0; again != MAP_FAILED && i < left.size(); ++i) {
    const Piece piece = left[i];
    const auto found = own(piece.begin, piece.begin + piece.length, 0, 0);
    for (const auto& [begin, length] : found)
      for (uintptr_t at = begin, same = begin; at <= begin + length; at += kPage) {
        const char* was = static_cast<char*>(again) + piece.at + (at - piece.begin);
        if (at < begin + length && at != mine && !memcmp(reinterpret_cast<void*>(at), was, kPage)) continue;
        if (same < at) madvise(reinterpret_cast<void*>(same), at - same, MADV_DONTNEED);
        same = at + kPage;
      }
  }
  if (again != MAP_FAILED) munmap(again, image_bytes);
  syscall(SYS_rt_sigprocmask, SIG_SETMASK, &before, nullptr, 8);
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
