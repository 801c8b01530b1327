// Numbers of the system calls that the seccomp profile names, as this machine's headers give them.
#pragma once

#include <sys/syscall.h>

namespace statepool::sandbox {

struct Named {
  const char* name;
  int number;
};

#define STATEPOOL_CALL(name) {#name, SYS_##name}
inline constexpr Named kSyscalls[] = {
    STATEPOOL_CALL(acct), STATEPOOL_CALL(add_key), STATEPOOL_CALL(adjtimex), STATEPOOL_CALL(bpf), STATEPOOL_CALL(chroot),
    STATEPOOL_CALL(clock_adjtime), STATEPOOL_CALL(clock_settime), STATEPOOL_CALL(clone), STATEPOOL_CALL(clone3),
    STATEPOOL_CALL(delete_module), STATEPOOL_CALL(fanotify_init), STATEPOOL_CALL(fanotify_mark), STATEPOOL_CALL(finit_module),
    STATEPOOL_CALL(fsconfig), STATEPOOL_CALL(fsmount), STATEPOOL_CALL(fsopen), STATEPOOL_CALL(fspick), STATEPOOL_CALL(init_module),
    STATEPOOL_CALL(io_uring_enter), STATEPOOL_CALL(io_uring_register), STATEPOOL_CALL(io_uring_setup), STATEPOOL_CALL(ioctl),
    STATEPOOL_CALL(kcmp), STATEPOOL_CALL(kexec_load), STATEPOOL_CALL(keyctl), STATEPOOL_CALL(lookup_dcookie),
    STATEPOOL_CALL(mbind), STATEPOOL_CALL(migrate_pages), STATEPOOL_CALL(mount), STATEPOOL_CALL(mount_setattr),
    STATEPOOL_CALL(move_mount), STATEPOOL_CALL(move_pages), STATEPOOL_CALL(name_to_handle_at), STATEPOOL_CALL(nfsservctl),
    STATEPOOL_CALL(open_by_handle_at), STATEPOOL_CALL(open_tree), STATEPOOL_CALL(perf_event_open), STATEPOOL_CALL(personality),
    STATEPOOL_CALL(pidfd_getfd), STATEPOOL_CALL(pivot_root), STATEPOOL_CALL(process_madvise), STATEPOOL_CALL(process_vm_readv),
    STATEPOOL_CALL(process_vm_writev), STATEPOOL_CALL(ptrace), STATEPOOL_CALL(quotactl), STATEPOOL_CALL(quotactl_fd),
    STATEPOOL_CALL(reboot), STATEPOOL_CALL(request_key), STATEPOOL_CALL(set_mempolicy), STATEPOOL_CALL(setdomainname),
    STATEPOOL_CALL(sethostname), STATEPOOL_CALL(setns), STATEPOOL_CALL(settimeofday), STATEPOOL_CALL(socket),
    STATEPOOL_CALL(swapoff), STATEPOOL_CALL(swapon), STATEPOOL_CALL(syslog), STATEPOOL_CALL(umount2), STATEPOOL_CALL(unshare),
    STATEPOOL_CALL(userfaultfd), STATEPOOL_CALL(vhangup), STATEPOOL_CALL(mknodat), STATEPOOL_CALL(socketpair),
#ifdef __x86_64__
    STATEPOOL_CALL(_sysctl), STATEPOOL_CALL(create_module), STATEPOOL_CALL(get_kernel_syms), STATEPOOL_CALL(ioperm),
    STATEPOOL_CALL(iopl), STATEPOOL_CALL(kexec_file_load), STATEPOOL_CALL(mknod), STATEPOOL_CALL(modify_ldt),
    STATEPOOL_CALL(query_module), STATEPOOL_CALL(sysfs), STATEPOOL_CALL(uselib), STATEPOOL_CALL(ustat),
#endif
};
#undef STATEPOOL_CALL

}  // namespace statepool::sandbox
