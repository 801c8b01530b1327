#include "wire.h"

#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

namespace statepool::sandbox {
namespace {

constexpr size_t kMostFds = 32;

void take(msghdr& head, std::vector<int>& fds) {
  for (cmsghdr* part = CMSG_FIRSTHDR(&head); part; part = CMSG_NXTHDR(&head, part)) {
    if (part->cmsg_level != SOL_SOCKET || part->cmsg_type != SCM_RIGHTS) continue;
    const size_t count = (part->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (size_t i = 0; i < count; ++i) {
      int fd;
      memcpy(&fd, CMSG_DATA(part) + i * sizeof(int), sizeof fd);
      fds.push_back(fd);
    }
  }
}

bool read_bytes(int line, char* to, size_t length, std::vector<int>& fds) {
  while (length) {
    iovec piece{to, length};
    alignas(cmsghdr) char room[CMSG_SPACE(kMostFds * sizeof(int))];
    msghdr head;
    memset(&head, 0, sizeof head);
    head.msg_iov = &piece;
    head.msg_iovlen = 1;
    head.msg_control = room;
    head.msg_controllen = sizeof room;
    const ssize_t got = recvmsg(line, &head, MSG_CMSG_CLOEXEC);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) return false;
    take(head, fds);
    to += got;
    length -= size_t(got);
  }
  return true;
}

}  // namespace

bool receive(int line, Order& order, uint32_t most) {
  unsigned char head[4];
  order.fds.clear();
  if (!read_bytes(line, reinterpret_cast<char*>(head), sizeof head, order.fds)) return false;
  const uint32_t length = head[0] | head[1] << 8 | head[2] << 16 | uint32_t(head[3]) << 24;
  if (length > most) return false;
  order.body.resize(length);
  return read_bytes(line, order.body.data(), length, order.fds);
}

void tell(int line, std::string_view text, const std::vector<int>& fds) {
  const uint32_t length = uint32_t(text.size());
  std::string whole(4, '\0');
  for (int i = 0; i < 4; ++i) whole[i] = char(length >> 8 * i);
  whole += text;
  alignas(cmsghdr) char room[CMSG_SPACE(kMostFds * sizeof(int))];
  for (size_t done = 0; done < whole.size();) {
    iovec piece{whole.data() + done, whole.size() - done};
    msghdr head;
    memset(&head, 0, sizeof head);
    head.msg_iov = &piece;
    head.msg_iovlen = 1;
    if (!done && !fds.empty()) {
      const size_t bytes = fds.size() * sizeof(int);
      head.msg_control = room;
      head.msg_controllen = CMSG_SPACE(bytes);
      cmsghdr* part = CMSG_FIRSTHDR(&head);
      part->cmsg_level = SOL_SOCKET;
      part->cmsg_type = SCM_RIGHTS;
      part->cmsg_len = CMSG_LEN(bytes);
      memcpy(CMSG_DATA(part), fds.data(), bytes);
    }
    const ssize_t sent = sendmsg(line, &head, MSG_NOSIGNAL);
    if (sent < 0 && errno != EINTR) _exit(0);
    if (sent > 0) done += size_t(sent);
  }
}

void tell_failure(int line, const std::string& step, int error) {
  tell(line, "{\"op\":\"failed\",\"error\":" + quoted(step + ": " + strerror(error)) + ",\"errno\":" + std::to_string(error) + "}");
}

std::string quoted(std::string_view text) {
  std::string made = "\"";
  for (const unsigned char letter : text) {
    if (letter >= 0x20 && letter < 0x7f && letter != '"' && letter != '\\') {
      made += char(letter);
      continue;
    }
    char code[8];
    snprintf(code, sizeof code, letter < 0x80 ? "\\u%04x" : "\\udc%02x", letter);
    made += code;
  }
  return made + '"';
}

void forget(std::vector<int>& fds) {
  for (const int fd : fds) close(fd);
  fds.clear();
}

}  // namespace statepool::sandbox
