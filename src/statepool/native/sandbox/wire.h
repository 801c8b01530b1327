// Messages of processes that run no Python: four bytes of length, then a body, file descriptors beside it.
#pragma once

#include <stdint.h>

#include <string>
#include <string_view>
#include <vector>

namespace statepool::sandbox {

struct Order {
  std::string body;
  std::vector<int> fds;
};

// The next message on `line`; false once the other end has gone, or sent what is no message or longer than `most`.
bool receive(int line, Order& order, uint32_t most = 1 << 20);

// Send JSON. Ends the process where nobody is left to hear it.
void tell(int line, std::string_view text, const std::vector<int>& fds = {});

// {"op":"failed","error":"<step>: <what errno says>","errno":…}
void tell_failure(int line, const std::string& step, int error);

// A JSON string. Bytes outside ASCII become the lone surrogates that Python's surrogateescape makes of them.
std::string quoted(std::string_view text);

void forget(std::vector<int>& fds);

}  // namespace statepool::sandbox
