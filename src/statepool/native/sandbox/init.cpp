#include "init.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <map>
#include <set>

#include "command.h"
#include "loopback.h"
#include "pages.h"
#include "wire.h"

namespace statepool::sandbox {
namespace {

constexpr long kResetSeconds = 5;

// The fields of a request, each ended by a zero byte where it lies.
class Fields {
 public:
  explicit Fields(std::string& body) : at_(body.data()), end_(body.data() + body.size() + 1) {}
  bool more() const { return at_ < end_; }
  char* text() {
    if (!more()) throw Failed{"a field of the request is missing", EINVAL};
    char* field = at_;
    at_ += strlen(at_) + 1;
    return field;
  }
  int64_t number() { return strtoll(text(), nullptr, 10); }
  std::set<pid_t> pids() {
    std::set<pid_t> found;
    while (more()) found.insert(pid_t(number()));
    return found;
  }

 private:
  char *at_, *end_;
};

struct Answer {
  std::string text = "";  // further members of the JSON object, each with a comma before it
  std::vector<int> fds = {};
  bool lent = false;  // whether the descriptors stay open here
};

std::vector<pid_t> processes() {
  std::vector<pid_t> found;
  DIR* all = opendir("/proc");
  if (!all) fail("/proc");
  while (const dirent* entry = readdir(all))
    if (const int pid = atoi(entry->d_name)) found.push_back(pid);
  closedir(all);
  return found;
}

// The device of a process's root directory; 0 once it has ended.
dev_t device_of(pid_t pid) {
  struct stat there;
  const std::string path = "/proc/" + std::to_string(pid) + "/root";
  if (!stat(path.c_str(), &there)) return there.st_dev;
  if (errno != ENOENT && errno != ESRCH) fail(path);
  return 0;
}

std::string command_line(pid_t pid) {
  char line[4096];
  const int fd = open(("/proc/" + std::to_string(pid) + "/cmdline").c_str(), O_RDONLY | O_CLOEXEC);
  const ssize_t length = fd < 0 ? 0 : read(fd, line, sizeof line);
  if (fd >= 0) close(fd);
  std::string text(line, size_t(length > 0 ? length : 0));
  for (char& letter : text)
    if (!letter) letter = ' ';
  while (!text.empty() && text.back() == ' ') text.pop_back();
  return text;
}

std::string listed(const std::vector<pid_t>& pids) {
  std::string text = "[";
  for (const pid_t pid : pids) text += (text.size() > 1 ? ",[" : "[") + std::to_string(pid) + "," + quoted(command_line(pid)) + "]";
  return text + "]";
}

class Init {
 public:
  Init(const Plan& plan, const Room& room, const std::vector<sock_filter>& program)
      : userns_(plan.userns), program_(program), roots_(plan), room_(room) {
    live_ = {{0, roots_.fresh(room_)}};
    if (sethostname("sandbox", 7)) fail("sethostname");
    loopback_up();
    unused_ = net_counts();
  }

  // Returns in a kernel.
  void serve() {
    sigset_t open_mask;
    sigprocmask(SIG_BLOCK, nullptr, &open_mask);
    sigdelset(&open_mask, SIGCHLD);
    while (true) {
      pollfd wanted{kControl, POLLIN, 0};
      const int ready = ppoll(&wanted, 1, nullptr, &open_mask);
      reap();
      if (ready <= 0) continue;
      Order order;
      if (!receive(kControl, order)) _exit(0);
      if (answer(order)) return;
    }
  }

 private:
  // Whether this is a kernel now.
  bool answer(Order& order) {
    Fields fields(order.body);
    const std::string id = fields.text(), what = fields.text();
    Answer reply;
    try {
      if (what == "start" || what == "kernel") {
        const pid_t pid = what == "start" ? begin(fields, order.fds) : grow(root(fields.number()), order.fds);
        if (!pid) return true;
        reply.text = ",\"pid\":" + std::to_string(pid);
      } else {
        reply = other(what, fields, order.fds);
      }
    } catch (const Failed& failed) {
      reply = {",\"error\":" + quoted(failed.what) + ",\"errno\":" + std::to_string(failed.error)};
    }
    forget(order.fds);
    tell(kControl, "{\"re\":" + id + reply.text + "}", reply.fds);
    if (!reply.lent) forget(reply.fds);
    return false;
  }

  Answer other(const std::string& what, Fields& fields, const std::vector<int>& fds) {
    if (what == "spawn") return spawn(fields, fds);
    if (what == "signal") return signal(fields);
    if (what == "root") return {"", {root(fields.number()).fd}, true};
    if (what == "busy") return busy(fields);
    if (what == "layers") return layers(fields);
    if (what == "touched") return touched(fields);
    if (what == "drop") return drop(fields);
    if (what == "listen") {
      const Listening made = listen_there(int(fields.number()));
      return {",\"port\":" + std::to_string(made.port), {made.fd}};
    }
    if (what == "connect") {
      const int port = int(fields.number());
      return {"", {connect_there(port, int(fields.number()))}};
    }
    if (what == "processes") return {",\"processes\":" + listed(others({1}))};
    if (what == "reset") return reset(fields.number());
    throw Failed{"no request is called " + what, EINVAL};
  }

  // A new tenant: its user id, the size of its layers, limits as pairs of resource and value; and its first kernel.
  pid_t begin(Fields& fields, const std::vector<int>& fds) {
    const uint32_t uid = uint32_t(fields.number());
    Room room;
    room.bytes = uint64_t(fields.number());
    room.inodes = uint64_t(fields.number());
    command_ = Confinement{uid, uid, 0, !userns_, program_, {}};
    while (fields.more()) {
      const int resource = int(fields.number());
      uint64_t value = uint64_t(fields.number());
      rlimit64 now;
      if (getrlimit64(__rlimit_resource(resource), &now)) fail("getrlimit");
      if (now.rlim_max != RLIM64_INFINITY && value > now.rlim_max) value = now.rlim_max;
      command_.limits.push_back({resource, value});
    }
    kernel_ = command_;
    kernel_.capabilities = uint64_t(1) << CAP_SYS_CHROOT;  // it moves itself to the next layer of its files; nothing but its own roots
    if (room != room_) {
      close_later(roots_.detach(root(0)));
      live_ = {{0, roots_.fresh(room)}};
    }
    room_ = room;
    roots_.own(root(0), uid);
    return grow(root(0), fds);
  }

  // Fork a kernel into this root, with its socket, output and error; 0 in the kernel.
  pid_t grow(const Root& into, const std::vector<int>& fds) {
    if (fds.size() < 3) throw Failed{"a kernel needs three descriptors", EINVAL};
    const pid_t pid = fork();
    if (pid < 0) fail("fork");
    if (pid) {
      tracked_.insert(pid);
      return pid;
    }
    copy_expected();
    for (int i = 0; i < 3; ++i) dup2(fds[size_t(i)], (i + 2) % 3 + 1);  // socket, output, error at 3, 1, 2
    const char* step = confine(kernel_, into.fd);
    if (!step && syscall(SYS_close_range, unsigned(kControl + 1), ~0u, 0)) step = "close_range";
    // After setresuid the files of /proc/self would be root's.
    if (!step && prctl(PR_SET_DUMPABLE, 1, 0, 0, 0)) step = "PR_SET_DUMPABLE";
    if (!step && chdir("/home/user")) step = "/home/user";
    if (step) {
      tell_failure(kControl, step, errno);
      _exit(1);
    }
    reset_signals();
    return 0;
  }

  // Start a command. With a terminal it gets a new one, and the manager its other end.
  Answer spawn(Fields& fields, const std::vector<int>& fds) {
    const Root& in = root(fields.number());
    const bool terminal = fields.number();
    winsize size{};
    size.ws_row = static_cast<unsigned short>(fields.number());
    size.ws_col = static_cast<unsigned short>(fields.number());
    const char* cwd = fields.text();
    std::vector<char*> argv, env;
    for (int64_t count = fields.number(); count > 0; --count) argv.push_back(fields.text());
    argv.push_back(nullptr);
    while (fields.more()) env.push_back(fields.text());
    env.push_back(nullptr);
    if (!argv[0] || fds.size() < (terminal ? 0 : 3)) throw Failed{"spawn: no program or no descriptors", EINVAL};
    Answer reply;
    int ends[3] = {-1, -1, -1};
    if (terminal) {
      reply.fds.push_back(open_terminal(in, size, ends[0]));
      ends[1] = ends[2] = ends[0];
    }
    pid_t pid;
    try {
      pid = start({&command_, in.fd, cwd, std::move(argv), std::move(env), terminal ? ends : fds.data(), terminal});
    } catch (const Failed&) {
      if (terminal) close(ends[0]);
      forget(reply.fds);
      throw;
    }
    if (terminal) close(ends[0]);
    tracked_.insert(pid);
    reply.text = ",\"pid\":" + std::to_string(pid);
    return reply;
  }

  // A pseudo terminal of this root's own instance: answers the manager's end, and sets the tenant's.
  int open_terminal(const Root& in, const winsize& size, int& theirs) const {
    const std::string folder = in.path() + "/dev/pts/";
    const int master = open((folder + "ptmx").c_str(), O_RDWR | O_NOCTTY | O_CLOEXEC);
    if (master < 0) fail(folder + "ptmx");
    int number = 0;
    const bool numbered = !ioctl(master, TIOCSPTLCK, &number) && !ioctl(master, TIOCGPTN, &number);
    theirs = numbered ? open((folder + std::to_string(number)).c_str(), O_RDWR | O_NOCTTY | O_CLOEXEC) : -1;
    const uint32_t uid = command_.uid;
    if (theirs >= 0 && !ioctl(theirs, TIOCSWINSZ, &size) && (userns_ || !fchown(theirs, uid, uid))) return master;
    const int error = errno;
    close(master);
    if (theirs >= 0) close(theirs);
    errno = error;
    fail(folder);
  }

  Answer signal(Fields& fields) {
    const pid_t pid = pid_t(fields.number());
    const bool group = fields.number();
    const int number = int(fields.number());
    bool sent = false;
    if (pid > 1) {
      sent = !kill(group ? -pid : pid, number);
      if (!sent && errno != ESRCH) fail("signal");
    }
    return {sent ? ",\"sent\":true" : ",\"sent\":false"};
  }

  // Who is at work in a root, but those named.
  Answer busy(Fields& fields) {
    const Root& in = root(fields.number());
    return {",\"busy\":" + listed(inside(in, fields.pids()))};
  }

  // Roots above one that nobody writes to any more.
  Answer layers(Fields& fields) {
    const Root below = root(fields.number());
    Answer reply;
    reply.lent = true;
    while (fields.more()) {
      const int number = int(fields.number());
      reply.fds.push_back((live_[number] = roots_.above(below, room_)).fd);
    }
    return reply;
  }

  // Whether anything lies in a root's own layer, or anybody but the processes named is in it.
  Answer touched(Fields& fields) {
    const Root& in = root(fields.number());
    bool found = !inside(in, fields.pids()).empty();
    DIR* upper = found ? nullptr : opendir(in.upper().c_str());
    if (!found && !upper) fail(in.upper());
    while (const dirent* entry = upper ? readdir(upper) : nullptr) found |= strcmp(entry->d_name, ".") && strcmp(entry->d_name, "..");
    if (upper) closedir(upper);
    return {found ? ",\"touched\":true" : ",\"touched\":false"};
  }

  // Take a root away, and end who is still in it; its layer stays while others lie on it.
  Answer drop(Fields& fields) {
    const int number = int(fields.number());
    const Root gone = root(number);
    live_.erase(number);
    for (const pid_t pid : inside(gone, fields.pids())) kill(pid, SIGKILL);
    close_later(roots_.detach(gone));
    return {};
  }

  // Nothing of the last tenant stays: processes, System V and POSIX objects, names, sockets, files.
  Answer reset(bool network) {
    tracked_.clear();
    kill(-1, SIGKILL);
    // All this while they die. But files are freed afterwards: else the last one to die would free them, and be that much later.
    std::map<int, Root> old{{0, roots_.fresh(room_)}};
    old.swap(live_);
    std::vector<int> gone;
    for (const auto& [number, root] : old)
      for (const int fd : roots_.detach(root)) gone.push_back(fd);
    if (unshare(CLONE_NEWIPC | CLONE_NEWUTS)) fail("unshare");
    if (sethostname("sandbox", 7)) fail("sethostname");
    const bool dead = kill_all();
    close_later(std::move(gone));
    if (!dead) return {",\"problem\":\"processes that do not die\""};
    if (network || sockets_left() || net_counts() != unused_) {
      if (unshare(CLONE_NEWNET)) fail("unshare");
      loopback_up();
    }
    const int last = open("/proc/sys/kernel/ns_last_pid", O_WRONLY | O_CLOEXEC);  // ids would tell how many processes others had
    if (last >= 0) (void)!write(last, "1", 1);
    if (last >= 0) close(last);
    return {};
  }

  // End what the tenant left running; answers whether all is gone. A fork bomb needs several rounds.
  static bool kill_all() {
    const time_t last = now() + kResetSeconds;
    sigset_t child;
    sigemptyset(&child);
    sigaddset(&child, SIGCHLD);
    while (true) {
      pid_t pid;
      while ((pid = waitpid(-1, nullptr, WNOHANG)) > 0) continue;
      if (pid < 0 && kill(-1, SIGKILL)) return true;  // no child, and nobody else
      if (now() > last) return false;
      kill(-1, SIGKILL);
      const timespec pause{0, 10'000'000};
      sigtimedwait(&child, nullptr, &pause);
    }
  }

  static time_t now() {
    timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec;
  }

  void reap() {
    int status;
    for (pid_t pid; (pid = waitpid(-1, &status, WNOHANG)) > 0;) {
      if (!tracked_.erase(pid)) continue;
      const int code = WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
      tell(kControl, "{\"op\":\"exit\",\"pid\":" + std::to_string(pid) + ",\"code\":" + std::to_string(code) + "}");
    }
  }

  std::vector<pid_t> others(const std::set<pid_t>& spared) const {
    std::vector<pid_t> found;
    for (const pid_t pid : processes())
      if (pid != 1 && !spared.count(pid)) found.push_back(pid);
    return found;
  }

  std::vector<pid_t> inside(const Root& in, const std::set<pid_t>& spared) const {
    std::vector<pid_t> found;
    for (const pid_t pid : others(spared))
      if (device_of(pid) == in.device) found.push_back(pid);
    return found;
  }

  Root& root(int64_t number) {
    const auto found = live_.find(int(number));
    if (found == live_.end()) throw Failed{"there is no root " + std::to_string(number), EINVAL};
    return found->second;
  }

  const bool userns_;
  const std::vector<sock_filter>& program_;
  Roots roots_;
  Room room_;
  std::string unused_;  // the counts of a network nobody has used
  std::map<int, Root> live_;  // 0 is the one that a tenant begins with
  std::set<pid_t> tracked_;  // whose ends the manager wants to hear of
  Confinement command_, kernel_;
};

void nothing(int) {}

}  // namespace

void serve_slot(const Plan& plan, const Room& room, const std::vector<sock_filter>& program) {
  struct sigaction action;
  memset(&action, 0, sizeof action);
  action.sa_handler = SIG_IGN;
  for (const int number : {SIGINT, SIGTERM, SIGHUP, SIGPIPE}) sigaction(number, &action, nullptr);
  action.sa_handler = nothing;
  sigaction(SIGCHLD, &action, nullptr);
  sigset_t child;  // comes in only while it waits, so that no end of a child is missed between two waits
  sigemptyset(&child);
  sigaddset(&child, SIGCHLD);
  sigprocmask(SIG_BLOCK, &child, nullptr);
  setsid();
  prctl(PR_SET_DUMPABLE, 0, 0, 0, 0);
  try {
    auto* init = new Init(plan, room, program);  // a kernel has a copy of it, and no use for it
    tell(kControl, "{\"op\":\"ready\"}");
    init->serve();
  } catch (const Failed& failed) {
    tell(kControl, "{\"op\":\"failed\",\"error\":" + quoted(failed.what) + "}");
    _exit(1);
  }
}

}  // namespace statepool::sandbox
