#include "workload/verdict.h"

#include "lib/serial.h"

#define VERSIONS_BACK_MAX 4096
#define VERSIONS_AHEAD_MAX 64
#define FLIPPED_WORDS_MAX 8
#define NONE (~0ULL)

/// One bad page, and what has been found out about it.
struct verdict {
  const char* kind;
  u64 found_version;  // NONE: no version of anything
  u64 first_word;     // the first that differs from what is expected
  u64 from_page;      // swapped: linear page whose content this is; else NONE
};

void findings_reserve(struct findings* findings, const struct ram* ram) {
  const u64 first = image_end_page();
  const u64 bytes = (ram->total_pages + 63) / 64 * 8;
  const u64 end = first + (bytes + PAGE_BYTES - 1) / PAGE_BYTES;
  if (end > ram->low_pages) fatal("RAM too small");
  findings->bitmap = page_address(ram, first);
  for (u64 i = 0; i < bytes / 8; ++i) findings->bitmap[i] = 0;
  ram_reserve(first, end);
}

static void keep_watch(struct findings* findings, u64 round) {
  if (round % 64 == 0) (void)gap_read(findings->watch);
}

/// The version of `page` near `expected` whose word `index` is `word`, else NONE.
static u64 find_version(struct findings* findings, u64 page, u64 expected, u64 index, u64 word) {
  const u64 oldest = expected > VERSIONS_BACK_MAX ? expected - VERSIONS_BACK_MAX : 0;
  for (u64 version = expected + VERSIONS_AHEAD_MAX; version + 1 > oldest; --version) {
    keep_watch(findings, version);
    if (word_at(stream_of(page, version), index) == word) return version;
    if (version == 0) break;
  }
  return NONE;
}

/// The linear page whose expected or filled content `words` is, else NONE.
static u64 find_page(struct findings* findings, const u64* words, u64* version) {
  const struct region* region = findings->region;
  for (u64 n = 0; n < region_pages(region); ++n) {
    keep_watch(findings, n);
    const u64 free_page = tested_page(region, n);
    const u64 page = linear_page(region, free_page);
    const u64 current = expected_version(region, free_page);
    if (word_at(stream_of(page, current), 0) == words[0] && page_holds(words, stream_of(page, current))) {
      *version = current;
      return page;
    }
    if (current && word_at(stream_of(page, 0), 0) == words[0] && page_holds(words, stream_of(page, 0))) {
      *version = 0;
      return page;
    }
  }
  return NONE;
}

/// How a page's words fall: like the expected version, like one other version (0 words: none given), zero, or neither.
struct tally {
  u64 wrong, like_other, zero;
};

static struct tally count_words(const u64* words, u64 page, u64 expected, u64 other) {
  const u64 good = stream_of(page, expected);
  const u64 bad = stream_of(page, other);
  struct tally tally = {0, 0, 0};
  for (u64 i = 0; i < PAGE_WORDS; ++i) {
    if (words[i] == word_at(good, i)) continue;
    ++tally.wrong;
    if (words[i] == 0) ++tally.zero;
    if (other != NONE && words[i] == word_at(bad, i)) ++tally.like_other;
  }
  return tally;
}

static struct verdict judge(struct findings* findings, const u64* words, u64 page, u64 expected) {
  struct verdict verdict = {.kind = "alien", .found_version = NONE, .first_word = 0, .from_page = NONE};
  const u64 stream = stream_of(page, expected);
  while (verdict.first_word < PAGE_WORDS - 1 && words[verdict.first_word] == word_at(stream, verdict.first_word)) {
    ++verdict.first_word;
  }
  const u64 other = find_version(findings, page, expected, verdict.first_word, words[verdict.first_word]);
  const struct tally tally = count_words(words, page, expected, other);
  if (tally.wrong == 0) {
    verdict.kind = "unstable";  // right by now: somebody else writes to it
    verdict.found_version = expected;
  } else if (tally.zero == PAGE_WORDS) {
    verdict.kind = "zero";
  } else if (other != NONE && tally.like_other == tally.wrong) {
    verdict.found_version = other;
    verdict.kind = tally.wrong < PAGE_WORDS ? "torn" : other > expected ? "ahead" : "stale";
  } else if (tally.wrong <= FLIPPED_WORDS_MAX) {
    verdict.kind = "flip";
    verdict.found_version = expected;
  } else if (tally.zero == tally.wrong) {
    verdict.kind = "torn";
  } else {
    verdict.from_page = find_page(findings, words, &verdict.found_version);
    if (verdict.from_page != NONE) verdict.kind = "swapped";
  }
  return verdict;
}

static void count_page(struct findings* findings, u64 page) {
  const u64 bit = 1ULL << page % 64;
  if (!(findings->bitmap[page / 64] & bit)) ++findings->errors;
  findings->bitmap[page / 64] |= bit;
}

/// Whether there is a line left for this sweep.
static bool may_print(struct findings* findings) {
  if (findings->lines < ERROR_LINES_PER_SWEEP_MAX) {
    ++findings->lines;
    return true;
  }
  ++findings->unprinted;
  return false;
}

static void print_error(struct findings* findings, u64 page, const struct verdict* verdict, u64 expected, u64 sweep) {
  struct line line;
  line_start(&line, "ERR");
  line_field(&line, "page", page);
  line_text(&line, " kind=");
  line_text(&line, verdict->kind);
  line_field(&line, "expected_version", expected);
  if (verdict->found_version == NONE) {
    line_text(&line, " found_version=none");
  } else {
    line_field(&line, "found_version", verdict->found_version);
  }
  line_field(&line, "word", verdict->first_word);
  line_field(&line, "sweep", sweep);
  if (verdict->from_page != NONE) line_field(&line, "from", verdict->from_page);
  line_print(&line);
  gap_skip(findings->watch);
}

void report_bad_page(struct findings* findings, u64 free_page, u64 version, u64 sweep) {
  const u64 page = linear_page(findings->region, free_page);
  count_page(findings, page);
  if (!may_print(findings)) return;
  const struct verdict verdict = judge(findings, page_address(findings->region->ram, page), page, version);
  print_error(findings, page, &verdict, version, sweep);
}

void report_own_page(struct findings* findings, u64 page, u64 found, u64 sweep) {
  const struct verdict verdict = {.kind = "own", .found_version = found, .first_word = 0, .from_page = NONE};
  count_page(findings, page);
  if (may_print(findings)) print_error(findings, page, &verdict, g_step, sweep);
}

void findings_end_sweep(struct findings* findings, u64 sweep) {
  if (findings->unprinted) {
    struct line line;
    line_start(&line, "ERR");
    line_field(&line, "more", findings->unprinted);
    line_field(&line, "sweep", sweep);
    line_print(&line);
    gap_skip(findings->watch);
  }
  findings->lines = 0;
  findings->unprinted = 0;
}
