/* What this machine can do at best: clock under load, read bandwidth (lines as they come, or fetched early into the second
   cache: whichever is faster). Prints one JSON line.
   usage: probe THREADS */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { MEGABYTES = 256, CHAIN = 200000000, MAX_THREADS = 64, AHEAD = 1024 };
static pthread_barrier_t gate;
static uint64_t *buffers[MAX_THREADS];
static volatile uint64_t sink;
static int early;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + 1e-9 * t.tv_nsec;
}

static void *reader(void *argument) {
    const uint64_t *data = buffers[(intptr_t)argument];
    const size_t words = (size_t)MEGABYTES << 17;
    uint64_t sum[32] = {0};
    pthread_barrier_wait(&gate);
    for (size_t i = 0; i < words; i += 32) {
        for (int line = 0; early && line < 32; line += 8) __builtin_prefetch(data + i + AHEAD + line, 0, 2);
        for (int lane = 0; lane < 32; lane++) sum[lane] += data[i + lane];
    }
    for (int lane = 0; lane < 32; lane++) sink += sum[lane];
    pthread_barrier_wait(&gate);
    return NULL;
}

static double bandwidth(int threads) {
    double best = 0;
    for (int round = 0; round < 10; round++) {
        early = round % 2;
        pthread_t ids[MAX_THREADS];
        pthread_barrier_init(&gate, NULL, threads + 1);
        for (intptr_t t = 0; t < threads; t++) pthread_create(&ids[t], NULL, reader, (void *)t);
        pthread_barrier_wait(&gate);
        double started = now();
        pthread_barrier_wait(&gate);
        double rate = threads * (double)((size_t)MEGABYTES << 20) / (now() - started) / 1e9;
        for (int t = 0; t < threads; t++) pthread_join(ids[t], NULL);
        pthread_barrier_destroy(&gate);
        if (rate > best) best = rate;
    }
    return best;
}

/* A chain of dependent additions takes one cycle each. Of a register: some processors add small constants for nothing. */
static double gigahertz(void) {
    double best = 0;
    for (int round = 0; round < 5; round++) {
        uint64_t x = round, y = 1;
        __asm__ volatile("" : "+r"(y));
        double started = now();
        for (int i = 0; i < CHAIN / 8; i++) {
#define STEP x += y; __asm__ volatile("" : "+r"(x));
            STEP STEP STEP STEP STEP STEP STEP STEP
        }
        sink += x;
        double rate = CHAIN / (now() - started) / 1e9;
        if (rate > best) best = rate;
    }
    return best;
}

int main(int argc, char **argv) {
    int threads = argc > 1 ? atoi(argv[1]) : 1;
    if (threads < 1 || threads > MAX_THREADS) return 2;
    for (int t = 0; t < threads; t++) {
        buffers[t] = aligned_alloc(64, (size_t)MEGABYTES << 20);
        if (!buffers[t]) return 3;
        memset(buffers[t], t + 1, (size_t)MEGABYTES << 20); /* untouched memory reads as one zero page */
    }
    printf("{\"gigahertz\": %.3f, \"read_gbs_1\": %.2f, \"read_gbs\": %.2f}\n", gigahertz(), bandwidth(1), bandwidth(threads));
    return 0;
}
