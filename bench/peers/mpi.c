// All-reduce and all-to-all of OpenMPI, driven line by line from standard input of rank 0: "OPERATION BYTES REPETITIONS".
// Answers with one line of seconds per repetition, each the slowest rank's.
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int main(int argc, char **argv) {
    MPI_Init(&argc, &argv);
    int rank, ranks;
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &ranks);
    for (;;) {
        char line[64] = "";
        if (rank == 0 && !fgets(line, sizeof line, stdin)) strcpy(line, "quit 0 0");
        // Asleep between the looks: a rank that spins here would take a core from whatever is measured meanwhile.
        MPI_Request request;
        MPI_Ibcast(line, sizeof line, MPI_CHAR, 0, MPI_COMM_WORLD, &request);
        for (int done = 0; MPI_Test(&request, &done, MPI_STATUS_IGNORE), !done;) usleep(1000);
        char operation[16];
        long bytes;
        int repetitions;
        if (sscanf(line, "%15s %ld %d", operation, &bytes, &repetitions) != 3 || !strcmp(operation, "quit")) break;
        float *from = malloc(bytes), *to = malloc(bytes);
        // Written, so that the input is memory and not the kernel's one page of zeros, which never leaves the cache.
        memset(from, 1, bytes);
        memset(to, 1, bytes);
        for (int i = -2; i < repetitions; i++) {
            MPI_Barrier(MPI_COMM_WORLD);
            double start = MPI_Wtime();
            if (!strcmp(operation, "allreduce"))
                MPI_Allreduce(from, to, bytes / 4, MPI_FLOAT, MPI_SUM, MPI_COMM_WORLD);
            else
                MPI_Alltoall(from, bytes / ranks, MPI_CHAR, to, bytes / ranks, MPI_CHAR, MPI_COMM_WORLD);
            double own = MPI_Wtime() - start, slowest;
            MPI_Reduce(&own, &slowest, 1, MPI_DOUBLE, MPI_MAX, 0, MPI_COMM_WORLD);
            if (rank == 0 && i >= 0) printf("%.9f ", slowest);
        }
        if (rank == 0) { printf("\n"); fflush(stdout); }
        free(from);
        free(to);
    }
    MPI_Finalize();
}
