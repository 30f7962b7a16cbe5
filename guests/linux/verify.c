// Reads a serial log of init from standard input, computes what each of its threads computed, and says whether every
// mark is right. usage: linux-verify PAGES CPUS. Exit code 0: all marks right and each CPU has one; 1: not; 2: usage.
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "linux/content.h"

enum { kCpusMax = 16, kPagesMax = 1 << 20, kTextBytes = 512 };

static struct Content threads[kCpusMax];
static unsigned long marks[kCpusMax];

// A log that was cut by a move may hold half a line: what is not a whole mark is no mark.
static int parse(const char* line, unsigned cpus, unsigned* cpu, uint64_t* step, uint64_t* sum) {
  const char* const mark = strstr(line, "BEAT cpu=");
  const size_t length = strlen(line);
  if (mark == NULL || length == 0 || line[length - 1] != '\n') return 0;
  return sscanf(mark, "BEAT cpu=%u step=%" SCNu64 " sum=%" SCNx64, cpu, step, sum) == 3 && *cpu < cpus;
}

static int check(unsigned cpu, uint64_t step, uint64_t sum) {
  struct Content* const content = &threads[cpu];
  if (step < content->step) {
    printf("CPU %u goes back from step %" PRIu64 " to %" PRIu64 "\n", cpu, content->step, step);
    return 0;
  }
  while (content->step < step) content_step(content);
  if (content->sum == sum) return 1;
  printf("CPU %u, step %" PRIu64 ": sum %" PRIx64 ", must be %" PRIx64 "\n", cpu, step, sum, content->sum);
  return 0;
}

int main(int argc, char** argv) {
  const unsigned long pages = argc == 3 ? strtoul(argv[1], NULL, 10) : 0;
  const unsigned long cpus = argc == 3 ? strtoul(argv[2], NULL, 10) : 0;
  if (pages == 0 || pages > kPagesMax || cpus == 0 || cpus > kCpusMax) {
    fprintf(stderr, "usage: linux-verify PAGES CPUS < LOG\n");
    return 2;
  }
  for (unsigned cpu = 0; cpu < cpus; ++cpu) {
    threads[cpu] = (struct Content){
        .words = calloc(pages, kContentPageBytes), .pages = pages, .seed = cpu + 1, .step = 0, .sum = 0};
    if (threads[cpu].words == NULL) return 2;
  }
  char line[kTextBytes];
  while (fgets(line, sizeof line, stdin) != NULL) {
    unsigned cpu = 0;
    uint64_t step = 0;
    uint64_t sum = 0;
    if (!parse(line, (unsigned)cpus, &cpu, &step, &sum)) continue;
    if (!check(cpu, step, sum)) return 1;
    ++marks[cpu];
  }
  for (unsigned cpu = 0; cpu < cpus; ++cpu) {
    printf("CPU %u: %lu marks, %" PRIu64 " steps\n", cpu, marks[cpu], threads[cpu].step);
    if (marks[cpu] == 0) return 1;
  }
  return 0;
}
