// The first process of the Linux guests of our tests: static, without a C library, without SIMD (a host's CPUID shows
// through to user code on PVM hosts, docs/linux.md). Words of the command line behind "--" arrive as arguments:
//
//   ws=N     pages that each thread dirties, 1 to 65536 (default 512)
//   cpus=N   threads, one on each CPU, 1 to 16 (default 1)
//   beat=N   milliseconds that a thread sleeps between two beats (default 20)
//   net=N    eth0 has 10.77.0.N, 1 to 254, and a TCP server answers on port 7 (default: no network)
//   vsock=N  a server answers on port N of the guest's vsock (default: none)
//   disk=N   blocks of a file on /dev/vda (ext2) that the first thread writes and reads back, 1 to 1024 (default: none)
//
// Marks on the console: "INIT START", "BEAT cpu= step= sum=" (content.h), "NET up" when the network is, "DISK step="
// after as many good steps on the disk, "ECHO ..." for a line that was typed, "ERROR ...". The line "reboot" restarts
// the machine, which ends the VM; "net N" starts the network's driver again, as 10.77.0.N.
#include "linux/content.h"
#include "linux/disk.h"
#include "linux/net.h"
#include "linux/syscalls.h"
#include "linux/vsock.h"

enum {
  kThreadsMax = 16,
  kPagesMax = 65536,
  kLineBytesMax = 128,
  kStackBytes = 16384,
  kBeatsPerMark = 10,
  kBlocksMax = 1024,
};

struct Options {
  uint64_t pages;
  uint64_t threads;
  uint64_t beat_ms;
  uint64_t blocks;  // 0: no disk
  uint64_t net;     // 0: none
  uint64_t vsock;   // 0: none
};

struct Line {
  char text[kLineBytesMax];
  unsigned length;
};

static struct Options options = {.pages = 512, .threads = 1, .beat_ms = 20, .net = 0, .vsock = 0, .blocks = 0};
static struct Line typed;
static _Alignas(16) unsigned char stacks[kThreadsMax + 2][kStackBytes];  // the last are the servers'

static void put_text(struct Line* line, const char* text) {
  while (*text != 0 && line->length < kLineBytesMax - 1) line->text[line->length++] = *text++;
}

static void put_number(struct Line* line, uint64_t value, unsigned base) {
  char digits[20];
  unsigned count = 0;
  do {
    digits[count++] = "0123456789abcdef"[value % base];
    value /= base;
  } while (value != 0);
  while (count != 0 && line->length < kLineBytesMax - 1) line->text[line->length++] = digits[--count];
}

// One write a line: lines of two threads do not mix.
static void print(struct Line* line) {
  line->text[line->length++] = '\n';
  syscall3(kSysWrite, 1, (long)line->text, line->length);
}

static void print_text(const char* text) {
  struct Line line = {.length = 0};
  put_text(&line, text);
  print(&line);
}

static int equal(const char* a, const char* b) {
  while (*a != 0 && *a == *b) ++a, ++b;
  return *a == *b;
}

// "KEY=DIGITS"; out of range or of another form: left as it is.
static void read_option(const char* word, const char* key, uint64_t limit, uint64_t* value) {
  while (*key != 0 && *word == *key) ++word, ++key;
  if (*key != 0 || *word++ != '=' || *word == 0) return;
  uint64_t number = 0;
  for (; *word >= '0' && *word <= '9' && number <= limit; ++word) number = number * 10 + (uint64_t)(*word - '0');
  if (*word == 0 && number >= 1 && number <= limit) *value = number;
}

static void print_error(const char* what) {
  struct Line line = {.length = 0};
  put_text(&line, "ERROR ");
  put_text(&line, what);
  print(&line);
}

static void say_net(const char* wrong) {
  struct Line line = {.length = 0};
  put_text(&line, wrong != 0 ? "ERROR network: " : "NET up");
  if (wrong != 0) put_text(&line, wrong);
  print(&line);
}

// "net N"
static void restart_net(const char* text) {
  uint64_t host = 0;
  while (*text >= '0' && *text <= '9' && host < 255) host = host * 10 + (uint64_t)(*text++ - '0');
  say_net(net_start_again(host));
}

static void restart(void) {
  enum { kMagic1 = (int)0xfee1dead, kMagic2 = 672274793, kRestart = 0x01234567 };
  disk_end();
  syscall3(kSysReboot, kMagic1, kMagic2, kRestart);
}

static void obey(void) {
  typed.text[typed.length] = 0;
  if (equal(typed.text, "reboot")) restart();
  if (typed.length > 4 && typed.text[0] == 'n' && typed.text[1] == 'e' && typed.text[2] == 't' &&
      typed.text[3] == ' ') {
    restart_net(typed.text + 4);
  }
  struct Line answer = {.length = 0};
  put_text(&answer, "ECHO ");
  put_text(&answer, typed.text);
  print(&answer);
  typed.length = 0;
}

// Sleeps until the time is over or something was typed.
static void listen_for(uint64_t milliseconds) {
  struct {
    int fd;
    short events, revents;
  } wanted = {.fd = 0, .events = 1, .revents = 0};  // POLLIN
  if (syscall3(kSysPoll, (long)&wanted, 1, (long)milliseconds) <= 0) return;
  char bytes[32];
  const long got = syscall3(kSysRead, 0, (long)bytes, sizeof bytes);
  for (long i = 0; i < got; ++i) {
    if (bytes[i] == '\n' || bytes[i] == '\r') {
      obey();
    } else if (typed.length < kLineBytesMax - 1) {
      typed.text[typed.length++] = bytes[i];
    }
  }
}

static void mark(uint64_t cpu, const struct Content* content) {
  struct Line line = {.length = 0};
  put_text(&line, "BEAT cpu=");
  put_number(&line, cpu, 10);
  put_text(&line, " step=");
  put_number(&line, content->step, 10);
  put_text(&line, " sum=");
  put_number(&line, content->sum, 16);
  print(&line);
}

// After an error the disk is left alone: one line says it.
static void use_disk(uint64_t beat) {
  if (options.blocks == 0) return;
  const char* const wrong = disk_step();
  if (wrong != 0) {
    options.blocks = 0;
    print_error(wrong);
    return;
  }
  if (beat % kBeatsPerMark != 0) return;
  struct Line line = {.length = 0};
  put_text(&line, "DISK step=");
  put_number(&line, disk_steps(), 10);
  print(&line);
}

// Bound to its CPU, so that on a machine with several each is seen to run.
static void work(uint64_t cpu) {
  enum { kReadWrite = 3, kPrivateAnonymous = 0x22 };
  const uint64_t only[1] = {1UL << cpu};
  if (syscall3(kSysSchedSetaffinity, 0, sizeof only, (long)only) < 0) {
    print_text("ERROR this CPU is not there");
    return;
  }
  const long bytes = (long)(options.pages * kContentPageBytes);
  const long memory = syscall6(kSysMmap, 0, bytes, kReadWrite, kPrivateAnonymous, -1, 0);
  if (memory < 0) {
    print_text("ERROR no memory");
    return;
  }
  struct Content content = {.words = (uint64_t*)memory, .pages = options.pages, .seed = cpu + 1, .step = 0, .sum = 0};
  for (uint64_t beat = 0;; ++beat) {
    content_beat(&content);
    if (beat % kBeatsPerMark == 0) mark(cpu, &content);
    if (cpu == 0) {
      use_disk(beat);
      listen_for(options.beat_ms);
    } else {
      syscall3(kSysPoll, 0, 0, (long)options.beat_ms);
    }
  }
}

// A thread: same memory and files, its own stack. It ends never, so nobody has to wait for it.
static long start_thread(void (*what)(uint64_t), uint64_t value, unsigned stack) {
  enum { kVmFsFilesSighandThread = 0x10f00 };
  register long r10 __asm__("r10") = 0;
  register long r8 __asm__("r8") = 0;
  register uint64_t argument __asm__("r12") = value;
  register void (*function)(uint64_t) __asm__("r13") = what;
  long answer;
  __asm__ volatile(
      "syscall\n\t"
      "test %%rax, %%rax\n\t"
      "jnz 1f\n\t"
      "mov %%r12, %%rdi\n\t"
      "call *%%r13\n"
      "2: mov %[pause], %%eax\n\t"
      "syscall\n\t"
      "jmp 2b\n"
      "1:"
      : "=a"(answer)
      : "a"((long)kSysClone), "D"((long)kVmFsFilesSighandThread), "S"(stacks[stack] + kStackBytes), "d"(0L), "r"(r10),
        "r"(r8), "r"(argument), "r"(function), [pause] "i"(kSysPause)
      : "rcx", "r11", "memory");
  return answer;
}

__attribute__((noreturn, used)) void start_init(const long* stack) {
  const long count = stack[0];
  const char* const* const words = (const char* const*)(stack + 1);
  for (long i = 1; i < count; ++i) {
    read_option(words[i], "ws", kPagesMax, &options.pages);
    read_option(words[i], "cpus", kThreadsMax, &options.threads);
    read_option(words[i], "beat", 60000, &options.beat_ms);
    read_option(words[i], "disk", kBlocksMax, &options.blocks);
    read_option(words[i], "net", 254, &options.net);
    read_option(words[i], "vsock", 65535, &options.vsock);
  }
  print_text("INIT START");
  const char* const wrong = options.blocks != 0 ? disk_start(options.blocks) : 0;
  if (wrong != 0) {
    options.blocks = 0;
    print_error(wrong);
  }
  for (uint64_t cpu = 1; cpu < options.threads; ++cpu) {
    if (start_thread(work, cpu, (unsigned)cpu) < 0) print_text("ERROR no thread");
  }
  if (options.net != 0) {
    say_net(net_start(options.net));
    if (start_thread(net_serve, 0, kThreadsMax) < 0) print_text("ERROR no thread");
  }
  if (options.vsock != 0 && start_thread(vsock_serve, options.vsock, kThreadsMax + 1) < 0) {
    print_text("ERROR no thread");
  }
  work(0);
  for (;;) syscall3(kSysPause, 0, 0, 0);
}

__asm__(
    ".globl _start\n"
    "_start:\n\t"
    "xor %ebp, %ebp\n\t"
    "mov %rsp, %rdi\n\t"
    "and $-16, %rsp\n\t"
    "call start_init\n");
