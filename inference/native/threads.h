/* A few threads that share out the parts of one job after another.
 *
 * Knows threads. Does not know what a job computes.
 */
#ifndef THREADS_H
#define THREADS_H

struct threads;

/* One part of a job; `thread` is less than the number of threads, and no two parts that run at
 * once have the same. */
typedef void (*job_part)(void *context, int part, int thread);

/* `count` threads, the caller's own among them. NULL where the system gives none. */
struct threads *threads_start(int count);
void threads_stop(struct threads *threads);
int threads_count(const struct threads *threads);

/* Run parts 0 .. parts-1, in any order, on all threads that have time; returns when all are done.
 * One caller at a time. */
void threads_run(struct threads *threads, job_part run, void *context, int parts);

#endif
