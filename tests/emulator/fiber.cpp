#include "fiber.h"

#include <sys/mman.h>

#include <cstdint>
#include <new>

#include "sanitizer.h"

#if !defined(__x86_64__) || defined(FLATSTEP_EMULATOR_UCONTEXT)
#  define FLATSTEP_EMULATOR_SWITCH_BY_UCONTEXT
#  include <ucontext.h>
#endif

namespace emulator {
namespace {

constexpr std::size_t kStackBytes = sanitizer::kOn ? 256 * 1024 : 64 * 1024;
constexpr std::size_t kGuardBytes = 4096;
// Stacks that begin at the same offset of their pages would share a few lines of the cache.
constexpr std::size_t kColours = 32, kColourBytes = 192;

Fiber* running = nullptr;
void* host_stack_pointer = nullptr;
void* host_fake_stack = nullptr;
const void* host_stack = nullptr;
std::size_t host_stack_bytes = 0;
std::size_t stacks = 0;

// A page that cannot be touched lies below each stack. Stacks live as long as the process.
char* new_stack() {
  void* memory = mmap(nullptr, kStackBytes + kGuardBytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  mprotect(memory, kGuardBytes, PROT_NONE);
  return static_cast<char*>(memory) + kGuardBytes;
}

}  // namespace

#if defined(FLATSTEP_EMULATOR_SWITCH_BY_UCONTEXT)

namespace {
// The context lies at the stack's lower end.
void prepare(void** stack_pointer, char* stack, std::size_t bytes, void (*entry)()) {
  constexpr std::size_t kReserved = (sizeof(ucontext_t) + 63) / 64 * 64;
  auto* context = new (stack) ucontext_t;
  getcontext(context);
  context->uc_stack.ss_sp = stack + kReserved;
  context->uc_stack.ss_size = bytes - kReserved;
  context->uc_link = nullptr;
  makecontext(context, entry, 0);
  *stack_pointer = context;
}
void switch_stack(void** from, void* to) {
  static ucontext_t host;
  if (*from == nullptr) *from = &host;
  swapcontext(static_cast<ucontext_t*>(*from), static_cast<ucontext_t*>(to));
}
}  // namespace

#else

// Saves what a function must preserve on the stack that is left, and takes it from the other.
extern "C" void flatstep_emulator_switch_stack(void** from, void* to);
asm(R"(
    .text
    .globl flatstep_emulator_switch_stack
    .type flatstep_emulator_switch_stack, @function
flatstep_emulator_switch_stack:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
    .size flatstep_emulator_switch_stack, .-flatstep_emulator_switch_stack
)");

namespace {
void prepare(void** stack_pointer, char* stack, std::size_t bytes, void (*entry)()) {
  constexpr int kSaved = 6;
  auto* top = reinterpret_cast<std::uintptr_t*>(stack + bytes);
  *--top = 0;  // no caller; entry finds the stack as after a call
  *--top = reinterpret_cast<std::uintptr_t>(entry);
  for (int i = 0; i < kSaved; ++i) *--top = 0;
  *stack_pointer = top;
}
void switch_stack(void** from, void* to) { flatstep_emulator_switch_stack(from, to); }
}  // namespace

#endif

void Fiber::start(void (*body)()) {
  if (stack_ == nullptr) {
    stack_ = new_stack();
    colour_ = stacks++ % kColours * kColourBytes;
  }
  if (unfinished_) sanitizer::unpoison(stack_, kStackBytes);
  fake_stack_ = nullptr;
  body_ = body;
  unfinished_ = true;
  prepare(&stack_pointer_, stack_, kStackBytes - colour_ - 64, &Fiber::enter);
}

bool Fiber::on_stack(const void* address) {
  const auto* place = static_cast<const char*>(address);
  return running != nullptr && place >= running->stack_ && place < running->stack_ + kStackBytes;
}

FLATSTEP_NOT_SANITIZED void Fiber::resume() {
  running = this;
  sanitizer::start_switch(&host_fake_stack, stack_, kStackBytes);
  switch_stack(&host_stack_pointer, stack_pointer_);
  sanitizer::finish_switch(host_fake_stack, nullptr, nullptr);
  running = nullptr;
}

FLATSTEP_NOT_SANITIZED void Fiber::suspend() {
  Fiber* self = running;
  sanitizer::start_switch(&self->fake_stack_, host_stack, host_stack_bytes);
  switch_stack(&self->stack_pointer_, host_stack_pointer);
  sanitizer::finish_switch(self->fake_stack_, nullptr, nullptr);
}

FLATSTEP_NOT_SANITIZED void Fiber::enter() {
  sanitizer::finish_switch(nullptr, &host_stack, &host_stack_bytes);
  running->body_();
  Fiber* self = running;
  self->unfinished_ = false;
  sanitizer::start_switch(nullptr, host_stack, host_stack_bytes);
  switch_stack(&self->stack_pointer_, host_stack_pointer);
  __builtin_trap();
}

}  // namespace emulator
