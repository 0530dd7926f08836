/* Parts are claimed one by one, so a thread that the system keeps from running delays nothing but
 * the part it holds: on a machine with less processor than threads, the others do its work.
 */
#define _GNU_SOURCE
#include "threads.h"

#include <immintrin.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

/* A step's jobs follow each other within microseconds; between steps threads sleep. */
#define SPINS_FOR_A_JOB 4000
#define SPINS_FOR_A_PART 2000

struct threads {
    /* Which job in the upper half, its next unclaimed part in the lower. */
    _Alignas(64) atomic_ullong ticket;
    _Alignas(64) atomic_uint done;
    /* What sleepers wait on: the number of the job. */
    _Alignas(64) atomic_uint job;
    atomic_uint sleepers;
    atomic_uint owner_sleeps;
    _Alignas(64) _Atomic(job_part) run;
    _Atomic(void *) context;
    atomic_uint parts;
    atomic_int stopping;
    int count;
    pthread_t workers[];
};

struct start {
    struct threads *threads;
    int thread;
};

static void futex_wait(atomic_uint *word, unsigned value)
{
    syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, value, NULL, NULL, 0);
}

static void futex_wake(atomic_uint *word)
{
    syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, INT32_MAX, NULL, NULL, 0);
}

/* Claim parts of job number `job` and run them until none is left. */
static void work(struct threads *threads, unsigned job, int thread)
{
    for (;;) {
        unsigned long long ticket = atomic_load(&threads->ticket);
        job_part run = atomic_load(&threads->run);
        void *context = atomic_load(&threads->context);
        unsigned parts = atomic_load(&threads->parts);
        unsigned part = (unsigned)ticket;
        if ((unsigned)(ticket >> 32) != job || part >= parts)
            return;
        /* Fails where another thread claimed the part, or where the job has changed since. */
        if (!atomic_compare_exchange_weak(&threads->ticket, &ticket, ticket + 1))
            continue;
        run(context, (int)part, thread);
        if (atomic_fetch_add(&threads->done, 1) + 1 == parts && atomic_load(&threads->owner_sleeps))
            futex_wake(&threads->done);
    }
}

static void *worker(void *argument)
{
    struct start start = *(struct start *)argument;
    free(argument);
    struct threads *threads = start.threads;
    unsigned seen = 0;
    while (!atomic_load(&threads->stopping)) {
        unsigned job = atomic_load(&threads->job);
        for (int spin = 0; job == seen && spin < SPINS_FOR_A_JOB; spin++) {
            _mm_pause();
            job = atomic_load_explicit(&threads->job, memory_order_acquire);
        }
        if (job == seen) {
            atomic_fetch_add(&threads->sleepers, 1);
            futex_wait(&threads->job, seen);
            atomic_fetch_sub(&threads->sleepers, 1);
            continue;
        }
        seen = job;
        work(threads, job, start.thread);
    }
    return NULL;
}

static int start_worker(struct threads *threads, int thread)
{
    struct start *start = malloc(sizeof *start);
    if (!start)
        return -1;
    *start = (struct start){ threads, thread };
    int failed = pthread_create(&threads->workers[thread - 1], NULL, worker, start);
    if (failed)
        free(start);
    return failed;
}

struct threads *threads_start(int count)
{
    struct threads *threads = aligned_alloc(
        64, (sizeof *threads + sizeof(pthread_t) * (size_t)count + 63) / 64 * 64);
    if (!threads)
        return NULL;
    *threads = (struct threads){ .count = 1 };
    /* Signals are for the threads that know what to do with them. */
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    while (threads->count < count && start_worker(threads, threads->count) == 0)
        threads->count++;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (threads->count < count) {
        threads_stop(threads);
        return NULL;
    }
    return threads;
}

void threads_stop(struct threads *threads)
{
    atomic_store(&threads->stopping, 1);
    atomic_fetch_add(&threads->job, 1);
    futex_wake(&threads->job);
    for (int thread = 1; thread < threads->count; thread++)
        pthread_join(threads->workers[thread - 1], NULL);
    free(threads);
}

int threads_count(const struct threads *threads)
{
    return threads->count;
}

/* The last parts are in other threads' hands. */
static void wait_until_done(struct threads *threads, unsigned parts)
{
    for (int spin = 0; spin < SPINS_FOR_A_PART; spin++) {
        if (atomic_load_explicit(&threads->done, memory_order_acquire) == parts)
            return;
        _mm_pause();
    }
    /* Perhaps the thread that holds one waits for this processor. */
    atomic_store(&threads->owner_sleeps, 1);
    unsigned done;
    while ((done = atomic_load(&threads->done)) != parts)
        futex_wait(&threads->done, done);
    atomic_store(&threads->owner_sleeps, 0);
}

void threads_run(struct threads *threads, job_part run, void *context, int parts)
{
    if (threads->count == 1 || parts == 1) {
        for (int part = 0; part < parts; part++)
            run(context, part, 0);
        return;
    }
    unsigned job = atomic_load(&threads->job) + 1;
    /* No part is unclaimed now: late threads see the old job's ticket and turn away. */
    atomic_store(&threads->done, 0);
    atomic_store(&threads->run, run);
    atomic_store(&threads->context, context);
    atomic_store(&threads->parts, 0);
    atomic_store(&threads->ticket, (unsigned long long)job << 32);
    atomic_store(&threads->parts, (unsigned)parts);
    atomic_store(&threads->job, job);
    if (atomic_load(&threads->sleepers))
        futex_wake(&threads->job);
    work(threads, job, 0);
    wait_until_done(threads, (unsigned)parts);
}
