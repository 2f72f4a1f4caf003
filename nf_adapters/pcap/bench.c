// SPDX-License-Identifier: GPL-2.0
/*
 * How long a libpcap takes for packets that lie in its ring:
 *
 *   bench LIBPCAP FLOWS PACKETS FILTER v3|v2
 *
 * In a network namespace of its own, which ends with it, packets of so many flows, at random, are
 * sent from one end of a veth pair and captured at the other; then they are read, and copied as a
 * program does that keeps them. FILTER is set for both ends of a flow where it is not empty. v2 is
 * immediate mode: a ring of frames, where v3 has blocks.
 * Prints: captured, dropped, ns per packet for reading, ns of CPU per packet for sending too (the
 * kernel's filter and its copying into the ring are in that); both of the round that took least,
 * since all that disturbs a round makes it longer.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dlfcn.h>
#include <linux/if_packet.h>
#include <net/if.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#define ROUNDS 12
#define LENGTH 128 /* bytes of a frame */
#define BATCH 64
#define RING (64 << 20)

/* What of pcap.h is needed; the headers need not be installed. */
struct header {
	struct timeval ts;
	uint32_t caplen, len;
};
struct program {
	unsigned int length;
	void *instructions;
};
struct statistics {
	unsigned int recv, drop, ifdrop;
};
typedef void (*handler)(unsigned char *, const struct header *, const unsigned char *);

static void *library;
static unsigned long captured, sink;
static unsigned char kept[1 << 16];

static void *function(const char *name)
{
	void *found = dlsym(library, name);

	if (!found) {
		fprintf(stderr, "%s\n", dlerror());
		exit(1);
	}
	return found;
}

static void keep(unsigned char *user, const struct header *header, const unsigned char *bytes)
{
	(void)user;
	memcpy(kept + (captured & 63) * 512, bytes, header->caplen < 512 ? header->caplen : 512);
	sink += kept[(captured & 63) * 512 + 40];
	captured++;
}

static double seconds(clockid_t clock)
{
	struct timespec now;

	clock_gettime(clock, &now);
	return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

static void be16(unsigned char *at, unsigned int value)
{
	at[0] = (unsigned char)(value >> 8);
	at[1] = (unsigned char)value;
}

/* Flow number i; m2m/lab/bench/capture.py names the same ones. */
static void make(unsigned char *frame, unsigned int number)
{
	static const unsigned char ip[20] = {0x45, 0, 0, LENGTH - 14, 0, 0, 0x40, 0, 64, 17, 0, 0,
					     10, 0, 2, 1, 10, 0, 3, 1};
	unsigned int sum = 0, i;

	memset(frame, 2, 12);
	be16(frame + 12, 0x0800);
	memcpy(frame + 14, ip, sizeof(ip));
	for (i = 0; i < 20; i += 2)
		sum += (unsigned int)ip[i] << 8 | ip[i + 1];
	sum = (sum & 0xffff) + (sum >> 16);
	be16(frame + 24, ~((sum & 0xffff) + (sum >> 16)) & 0xffff);
	be16(frame + 34, 40000 + number % 20000);
	be16(frame + 36, 61000 + number / 20000);
	be16(frame + 38, LENGTH - 34);
	be16(frame + 40, 0);
}

static void send_all(int out, unsigned int flows, unsigned int packets, unsigned int *random)
{
	static unsigned char frames[BATCH][LENGTH];
	struct mmsghdr messages[BATCH];
	struct iovec parts[BATCH];
	unsigned int sent = 0, i;

	memset(messages, 0, sizeof(messages));
	for (i = 0; i < BATCH; i++) {
		parts[i] = (struct iovec){frames[i], LENGTH};
		messages[i].msg_hdr.msg_iov = &parts[i];
		messages[i].msg_hdr.msg_iovlen = 1;
	}
	while (sent < packets) {
		for (i = 0; i < BATCH; i++) {
			*random = *random * 1664525u + 1013904223u;
			make(frames[i], (*random >> 8) % flows);
		}
		if (sendmmsg(out, messages, BATCH, 0) != BATCH) {
			perror("sendmmsg");
			exit(1);
		}
		sent += BATCH;
	}
}

int main(int argc, char **argv)
{
	unsigned int flows, packets, random = 1, round;
	struct sockaddr_ll at = {.sll_family = AF_PACKET};
	double reading = 1e9, busy = 1e9;
	int immediate, out;
	cpu_set_t here = {0};
	char errors[256];
	void *pcap;

	if (argc != 6)
		return 2;
	immediate = !strcmp(argv[5], "v2");
	/* the kernel's work, and all its caches, on the processor of the program */
	CPU_SET(sched_getcpu(), &here);
	sched_setaffinity(0, sizeof(here), &here);
	flows = (unsigned int)atoi(argv[2]);
	packets = (unsigned int)atoi(argv[3]);
	library = dlopen(argv[1], RTLD_NOW | RTLD_LOCAL);
	if (!library || unshare(CLONE_NEWNET) ||
	    system("sysctl -qw net.ipv6.conf.default.disable_ipv6=1 &&"
		   " ip link add x type veth peer name y && ip link set x up && ip link set y up")) {
		fprintf(stderr, "%s\n", library ? "no namespace with a veth pair" : dlerror());
		return 1;
	}
	pcap = ((void *(*)(const char *, char *))function("pcap_create"))("y", errors);
	/* so large is each frame of the ring in immediate mode */
	((int (*)(void *, int))function("pcap_set_snaplen"))(pcap, immediate ? 256 : 65535);
	((int (*)(void *, int))function("pcap_set_immediate_mode"))(pcap, immediate);
	((int (*)(void *, int))function("pcap_set_buffer_size"))(pcap, RING);
	((int (*)(void *, int))function("pcap_set_timeout"))(pcap, 10);
	if (((int (*)(void *))function("pcap_activate"))(pcap) < 0) {
		fprintf(stderr, "%s\n", ((char *(*)(void *))function("pcap_geterr"))(pcap));
		return 1;
	}
	if (*argv[4]) {
		struct program program;

		if (((int (*)(void *, struct program *, const char *, int, uint32_t))function(
			    "pcap_compile"))(pcap, &program, argv[4], 1, 0xffffffff) ||
		    ((int (*)(void *, struct program *))function("pcap_setfilter"))(pcap, &program)) {
			fprintf(stderr, "%s\n", ((char *(*)(void *))function("pcap_geterr"))(pcap));
			return 1;
		}
	}
	out = socket(AF_PACKET, SOCK_RAW, 0);
	at.sll_ifindex = (int)if_nametoindex("x");
	if (bind(out, (struct sockaddr *)&at, sizeof(at))) {
		perror("bind");
		return 1;
	}
	for (round = 0; round < ROUNDS; round++) {
		double began = seconds(CLOCK_PROCESS_CPUTIME_ID), read_began, ended;
		unsigned long before = captured;

		send_all(out, flows, packets, &random);
		usleep(50000); /* the last block is handed over */
		read_began = seconds(CLOCK_PROCESS_CPUTIME_ID);
		while (captured - before < packets / BATCH * BATCH &&
		       ((int (*)(void *, int, handler, unsigned char *))function("pcap_dispatch"))(
			       pcap, -1, keep, NULL) > 0)
			;
		ended = seconds(CLOCK_PROCESS_CPUTIME_ID);
		if (ended - read_began < reading)
			reading = ended - read_began;
		if (ended - began < busy)
			busy = ended - began;
	}
	{
		struct statistics told;

		((int (*)(void *, struct statistics *))function("pcap_stats"))(pcap, &told);
		printf("%lu %u %.2f %.2f\n", captured, told.drop,
		       reading * 1e9 / (packets / BATCH * BATCH),
		       busy * 1e9 / (packets / BATCH * BATCH));
	}
	return sink == 1;
}
