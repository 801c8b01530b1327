#include "roots.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <atomic>
#include <list>

namespace statepool::sandbox {
namespace {

constexpr unsigned long kPlain = MS_NOSUID | MS_NODEV;
constexpr unsigned long kReadOnly = MS_BIND | MS_REMOUNT | MS_RDONLY;
constexpr size_t kMostRoots = 1200;
constexpr size_t kMostLayers = 60;  // of one root: their paths have to fit in one page
constexpr const char* kDevices[] = {"null", "zero", "full", "random", "urandom", "tty"};
constexpr const char* kLinks[][2] = {{"fd", "/proc/self/fd"},       {"ptmx", "pts/ptmx"},          {"shm", "/run/shm"},
                                     {"stderr", "/proc/self/fd/2"}, {"stdin", "/proc/self/fd/0"}, {"stdout", "/proc/self/fd/1"}};
// What anybody could read in /proc; the rest is for root, who is not inside. Few: every root has a copy of the tree.
constexpr const char* kMasked[] = {"config.gz", "kallsyms", "key-users", "keys", "sched_debug", "timer_list"};

void put(const std::string& source, const std::string& target, const char* kind, unsigned long flags, const std::string& data = "") {
  if (mount(source.c_str(), target.c_str(), kind, flags, data.empty() ? nullptr : data.c_str())) fail(target);
}

void bind(const std::string& source, const std::string& target, unsigned long more = MS_REC) {
  put(source, target, nullptr, MS_BIND | more);
}

void folder(const std::string& path, mode_t mode) {
  if (mkdir(path.c_str(), mode) && errno != EEXIST) fail(path);
}

// A descriptor above those that a child puts its own over.
int high(const std::string& path, int flags) {
  const int low = open(path.c_str(), flags | O_CLOEXEC, 0644);
  if (low < 0) fail(path);
  const int fd = fcntl(low, F_DUPFD_CLOEXEC, 300);
  close(low);
  if (fd < 0) fail(path);
  return fd;
}

void write_file(const std::string& path, const std::string& text) {
  const int fd = high(path, O_WRONLY | O_TRUNC | O_CREAT | O_NOFOLLOW);
  const bool whole = write(fd, text.data(), text.size()) == ssize_t(text.size());
  close(fd);
  if (!whole) fail(path);
}

void bind_source(const std::string& source, const std::string& target) {
  folder(target, 0755);
  bind(source, target);
  if (!mount("", target.c_str(), nullptr, kReadOnly | kPlain, nullptr)) return;
  struct statvfs there;  // flags that were set outside a user namespace cannot be cleared inside
  if (errno != EPERM || statvfs(target.c_str(), &there)) fail(target);
  const unsigned long locked = there.f_flag & (MS_NOSUID | MS_NODEV | MS_NOEXEC | MS_NOATIME | MS_NODIRATIME);
  put("", target, nullptr, kReadOnly | kPlain | locked);
}

// The tree of /dev that every root shows; its terminals and shared memory are the root's own.
void devices(const std::string& at, bool userns) {
  put("dev", at, "tmpfs", MS_NOSUID | MS_NOEXEC, "size=64k,mode=0755");
  for (const char* name : kDevices) {
    const std::string path = at + "/" + name, host = std::string("/dev/") + name;
    struct stat there;
    if (userns) {  // which makes no devices
      write_file(path, "");
      bind(host, path, 0);
    } else if (stat(host.c_str(), &there) || mknod(path.c_str(), S_IFCHR, there.st_rdev) || chmod(path.c_str(), 0666)) {
      fail(path);
    }
  }
  for (const auto& [name, target] : kLinks)
    if (symlink(target, (at + "/" + name).c_str())) fail(at + "/" + name);
  folder(at + "/pts", 0755);
  put("", at, nullptr, kReadOnly | MS_NOSUID | MS_NOEXEC);
}

// Take a mount away; the descriptor that is answered keeps its memory until it is closed.
int taken(const std::string& path) {
  const int fd = open(path.c_str(), O_PATH | O_CLOEXEC);
  if (fd < 0 || umount2(path.c_str(), MNT_DETACH)) fail(path);
  return fd;
}

struct Closing {
  std::vector<int> fds;
  std::atomic<bool> done{false};
};

std::list<Closing> closing;  // of the thread that serves: one that frees memory would get a heap of its own, for good

void* close_there(void* there) {
  auto* what = static_cast<Closing*>(there);
  for (const int fd : what->fds) close(fd);
  what->done = true;
  return nullptr;
}

}  // namespace

void fail(const std::string& step) {
  const int error = errno;
  throw Failed{step + ": " + strerror(error), error};
}

void close_later(std::vector<int>&& fds) {
  closing.remove_if([](const Closing& old) { return old.done.load(); });
  closing.emplace_back().fds = std::move(fds);
  pthread_attr_t small;
  pthread_attr_init(&small);
  pthread_attr_setstacksize(&small, 64 << 10);
  pthread_attr_setdetachstate(&small, PTHREAD_CREATE_DETACHED);
  pthread_t thread;
  if (pthread_create(&thread, &small, close_there, &closing.back())) close_there(&closing.back());
  pthread_attr_destroy(&small);
}

Roots::Roots(const Plan& plan) : userns_(plan.userns), binds_(plan.sources), first_bind_(1 + int(plan.layers.size())) {
  const std::string& at = plan.folder;
  put("none", "/", nullptr, MS_REC | MS_PRIVATE);
  put("base", at, "tmpfs", kPlain, "size=4m,mode=0700");
  for (const char* name : {"/old", "/src", "/dev", "/proc", "/shown", "/u", "/g"}) folder(at + name, 0700);
  for (const char* name : {"/u", "/g"})  // stay writable: places for layers and roots are made when they are needed
    put("places", at + name, "tmpfs", kPlain, "size=1m,mode=0700");
  std::vector<std::string> all{plan.skeleton};
  all.insert(all.end(), plan.layers.begin(), plan.layers.end());
  all.insert(all.end(), plan.sources.begin(), plan.sources.end());
  for (size_t i = 0; i < all.size(); ++i) bind_source(all[i], at + "/src/" + std::to_string(i));
  for (int i = first_bind_ - 1; i >= 0; --i) base_ += (base_.empty() ? "/src/" : ":/src/") + std::to_string(i);
  devices(at + "/dev", userns_);
  // Before the old one goes: in a user namespace a new proc may show no more than one that is there.
  put("proc", at + "/proc", "proc", kPlain | MS_NOEXEC);
  put("proc", at + "/shown", "proc", kPlain | MS_NOEXEC, "hidepid=invisible");  // what every root shows: no process of others
  for (const char* name : kMasked) {
    const std::string path = at + "/shown/" + name;
    if (mount("/dev/null", path.c_str(), nullptr, MS_BIND, nullptr) && errno != ENOENT) fail(path);
  }
  if (syscall(SYS_pivot_root, at.c_str(), (at + "/old").c_str())) fail("pivot_root");
  if (chdir("/") || umount2("/old", MNT_DETACH) || rmdir("/old")) fail("/old");
  // Whoever breaks out of a root lands here, and may own this folder in a user namespace: nothing to see or to change.
  if (chmod("/", 0)) fail("/");
  put("", "/", nullptr, kReadOnly | kPlain);
}

Root Roots::above(const Root& root, const Room& room) {
  if (root.layers.size() >= kMostLayers) {
    const std::string most = std::to_string(kMostLayers);
    throw Failed{std::to_string(root.layers.size() + 1) + " layers of files lie above each other; at most " + most, ENOSPC};
  }
  return make(root.layers, room);
}

Root Roots::make(const std::vector<int>& lowers, const Room& room) {
  if (free_.empty()) {
    const std::string most = std::to_string(kMostRoots);
    if (users_.size() >= kMostRoots) throw Failed{"a slot holds at most " + most + " roots: close forks or snapshots", ENOSPC};
    free_.push_back(int(users_.size()));
    users_.push_back(0);
  }
  Root made;
  made.number = free_.back();
  free_.pop_back();
  const std::string layer = "/u/" + std::to_string(made.number), path = made.path();
  folder(layer, 0700);
  folder(path, 0700);
  const std::string size = "size=" + std::to_string(room.bytes) + ",nr_inodes=" + std::to_string(room.inodes);
  put("layer", layer, "tmpfs", kPlain, size + ",mode=0755");
  folder(layer + "/up", 0755);
  folder(layer + "/work", 0755);
  std::string options = "lowerdir=";
  for (const int number : lowers) options += "/u/" + std::to_string(number) + "/up:";
  options += base_ + ",upperdir=" + layer + "/up,workdir=" + layer + "/work,";
  put("root", path, "overlay", kPlain, options + (userns_ ? "userxattr" : "index=off,metacopy=off"));
  for (size_t i = 0; i < binds_.size(); ++i) bind("/src/" + std::to_string(first_bind_ + int(i)), path + binds_[i]);
  bind("/dev", path + "/dev");
  bind("/shown", path + "/proc");
  put("devpts", path + "/dev/pts", "devpts", MS_NOSUID | MS_NOEXEC, "newinstance,ptmxmode=0666,mode=0620");
  made.fd = high(path, O_PATH | O_DIRECTORY);
  struct stat there;
  if (fstat(made.fd, &there)) fail(path);
  made.device = there.st_dev;
  made.layers = {made.number};
  made.layers.insert(made.layers.end(), lowers.begin(), lowers.end());
  for (const int number : made.layers) ++users_[size_t(number)];
  return made;
}

std::vector<int> Roots::detach(const Root& root) {
  std::vector<int> gone{root.fd, taken(root.path())};
  for (const int number : root.layers) {
    if (--users_[size_t(number)]) continue;
    gone.push_back(taken("/u/" + std::to_string(number)));
    free_.push_back(number);
  }
  return gone;
}

void Roots::own(const Root& root, uint32_t uid) const {
  if (userns_) return;
  const std::string home = root.path() + "/home/user", id = std::to_string(uid);
  if (chown(home.c_str(), uid, uid)) fail(home);
  write_file(root.path() + "/etc/passwd",
             "root:x:0:0:root:/root:/bin/sh\nuser:x:" + id + ":" + id + ":user:/home/user:/bin/bash\n");
  write_file(root.path() + "/etc/group", "root:x:0:\nuser:x:" + id + ":\n");
}

}  // namespace statepool::sandbox
