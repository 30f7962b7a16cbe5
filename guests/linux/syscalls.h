// Linux system calls for a program without a C library (x86-64 ABI: number in rax, arguments in rdi, rsi, rdx, r10, r8,
// r9; rcx and r11 are lost). Numbers: arch/x86/entry/syscalls/syscall_64.tbl.
#pragma once

enum {
  kSysRead = 0,
  kSysWrite = 1,
  kSysOpen = 2,
  kSysClose = 3,
  kSysPoll = 7,
  kSysMmap = 9,
  kSysIoctl = 16,
  kSysPread64 = 17,
  kSysPwrite64 = 18,
  kSysPause = 34,
  kSysSocket = 41,
  kSysAccept = 43,
  kSysBind = 49,
  kSysListen = 50,
  kSysSetsockopt = 54,
  kSysClone = 56,
  kSysFsync = 74,
  kSysMkdir = 83,
  kSysReadlink = 89,
  kSysMount = 165,
  kSysUmount2 = 166,
  kSysReboot = 169,
  kSysSchedSetaffinity = 203,
};

/// The kernel's answer; -errno on an error.
static inline long syscall6(long number, long a, long b, long c, long d, long e, long f) {
  register long r10 __asm__("r10") = d;
  register long r8 __asm__("r8") = e;
  register long r9 __asm__("r9") = f;
  long answer;
  __asm__ volatile("syscall"
                   : "=a"(answer)
                   : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
                   : "rcx", "r11", "memory");
  return answer;
}

static inline long syscall3(long number, long a, long b, long c) {
  return syscall6(number, a, b, c, 0, 0, 0);
}
