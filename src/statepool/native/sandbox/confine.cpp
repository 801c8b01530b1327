#include "confine.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace statepool::sandbox {
namespace {

constexpr int kLastCapability = 63;  // the kernel answers EINVAL behind its own last one

// The first to go when the group runs out of memory; a failure is no breach, so it is not reported.
void volunteer_for_oom() {
  const int fd = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);
  if (fd < 0) return;
  (void)!write(fd, "1000", 4);
  close(fd);
}

}  // namespace

void reset_signals() {
  struct sigaction plain;
  memset(&plain, 0, sizeof plain);
  plain.sa_handler = SIG_DFL;
  for (int number = 1; number < 65; ++number) sigaction(number, &plain, nullptr);
  const uint64_t none = 0;
  syscall(SYS_rt_sigprocmask, SIG_SETMASK, &none, nullptr, 8);
}

const char* confine(const Confinement& want, int root_fd) {
  if (root_fd >= 0) {
    if (fchdir(root_fd)) return "fchdir";
    if (chroot(".")) return "chroot";
  }
  volunteer_for_oom();
  umask(022);
  for (const Limit& limit : want.limits) {
    const rlimit64 pair{limit.value, limit.value};
    if (syscall(SYS_prlimit64, 0, limit.resource, &pair, nullptr)) return "prlimit";
  }
  for (int bit = 0; bit <= kLastCapability; ++bit)
    if (prctl(PR_CAPBSET_DROP, bit, 0, 0, 0) && errno != EINVAL) return "PR_CAPBSET_DROP";
  if (want.groups && syscall(SYS_setgroups, 0, nullptr)) return "setgroups";
  if (syscall(SYS_setresgid, want.gid, want.gid, want.gid)) return "setresgid";
  if (prctl(PR_SET_KEEPCAPS, want.capabilities ? 1 : 0, 0, 0, 0)) return "PR_SET_KEEPCAPS";
  if (syscall(SYS_setresuid, want.uid, want.uid, want.uid)) return "setresuid";
  if (prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)) return "PR_CAP_AMBIENT";
  __user_cap_header_struct header{_LINUX_CAPABILITY_VERSION_3, 0};
  __user_cap_data_struct data[2];
  memset(data, 0, sizeof data);
  for (int half = 0; half < 2; ++half) {
    const uint32_t bits = uint32_t(want.capabilities >> (32 * half));
    data[half].permitted = data[half].effective = bits;
  }
  if (syscall(SYS_capset, &header, data)) return "capset";
  if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)) return "PR_SET_NO_NEW_PRIVS";
  if (!want.program.empty()) {
    const sock_fprog program{static_cast<unsigned short>(want.program.size()), const_cast<sock_filter*>(want.program.data())};
    if (syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program)) return "seccomp";
  }
  return nullptr;
}

}  // namespace statepool::sandbox
