// SPDX-License-Identifier: GPL-2.0
/*
 * How long two libpcaps take for packets that lie in their rings, by turns:
 *
 *   bench v3|v2 ROUNDS FLOWS PACKETS  LIBPCAP M2M_PCAP FILTER  LIBPCAP M2M_PCAP FILTER
 *
 * In a network namespace of its own, which ends with it, packets of so many flows, at random, are
 * sent from one end of a veth pair and captured at the other; then they are read, and copied as a
 * program does that keeps them. Each libpcap has a pair and a ring of its own, and is given so many
 * packets in each round; some before them, which do not count, have the processor's caches forget
 * the other one. M2M_PCAP is the environment variable; FILTER is set where it is not empty, and
 * lets all packets pass. v2 is immediate mode: a ring of frames, where v3 has blocks.
 *
 * Prints a line for each round: for the first and for the second libpcap, ns per packet for
 * reading, and ns of CPU per packet for sending too (the kernel's filter and its copying into the
 * ring are in that).
 * Fails where a packet was lost.
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
typedef void (*handler)(unsigned char *, const struct header *, const unsigned char *);

struct capture {
	void *library, *pcap;
	int (*dispatch)(void *, int, handler, unsigned char *);
	struct sockaddr_ll out; /* where packets for it are sent to */
};

struct cost {
	double reading, busy; /* ns per packet */
};

static unsigned long captured, sink;
static unsigned char kept[1 << 16];

static void *function(const struct capture *capture, const char *name)
{
	void *found = dlsym(capture->library, name);

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

static void send_all(int out, struct sockaddr_ll *to, unsigned int flows, unsigned int packets)
{
	static unsigned char frames[BATCH][LENGTH];
	static unsigned int random = 1;
	struct mmsghdr messages[BATCH];
	struct iovec parts[BATCH];
	unsigned int sent = 0, i;

	memset(messages, 0, sizeof(messages));
	for (i = 0; i < BATCH; i++) {
		parts[i] = (struct iovec){frames[i], LENGTH};
		messages[i].msg_hdr.msg_name = to;
		messages[i].msg_hdr.msg_namelen = sizeof(*to);
		messages[i].msg_hdr.msg_iov = &parts[i];
		messages[i].msg_hdr.msg_iovlen = 1;
	}
	while (sent < packets) {
		for (i = 0; i < BATCH; i++) {
			random = random * 1664525u + 1013904223u;
			make(frames[i], (random >> 8) % flows);
		}
		if (sendmmsg(out, messages, BATCH, 0) != BATCH) {
			perror("sendmmsg");
			exit(1);
		}
		sent += BATCH;
	}
}

static void fail(const struct capture *capture)
{
	char *(*told)(void *) = function(capture, "pcap_geterr");

	fprintf(stderr, "%s\n", told(capture->pcap));
	exit(1);
}

static void set_filter(const struct capture *capture, const char *text)
{
	int (*compile)(void *, struct program *, const char *, int, uint32_t) =
		function(capture, "pcap_compile");
	int (*set)(void *, struct program *) = function(capture, "pcap_setfilter");
	struct program program;

	if (compile(capture->pcap, &program, text, 1, 0xffffffff) || set(capture->pcap, &program))
		fail(capture);
}

/*
 * One that is asked for by its name alone must come before all others: where one that goes by this
 * name is loaded, no matter from where, the loader takes that.
 */
static void load(struct capture *capture, const char *library)
{
	capture->library = dlopen(library, RTLD_NOW | RTLD_LOCAL);
	if (!capture->library) {
		fprintf(stderr, "%s\n", dlerror());
		exit(1);
	}
	capture->dispatch = function(capture, "pcap_dispatch");
}

/* Capture at y, to which x sends, by a library with this environment. */
static void open_capture(struct capture *capture, char *const words[3], const char *x,
			 const char *y, int immediate)
{
	void *(*create)(const char *, char *);
	int (*set)(void *, int);
	char errors[256];

	setenv("M2M_PCAP", words[1], 1);
	create = function(capture, "pcap_create");
	capture->pcap = create(y, errors);
	/* so large is each frame of the ring in immediate mode */
	set = function(capture, "pcap_set_snaplen");
	set(capture->pcap, immediate ? 256 : 65535);
	set = function(capture, "pcap_set_immediate_mode");
	set(capture->pcap, immediate);
	set = function(capture, "pcap_set_buffer_size");
	set(capture->pcap, RING);
	set = function(capture, "pcap_set_timeout");
	set(capture->pcap, 10);
	if (((int (*)(void *))function(capture, "pcap_activate"))(capture->pcap) < 0)
		fail(capture);
	if (*words[2])
		set_filter(capture, words[2]);
	capture->out = (struct sockaddr_ll){.sll_family = AF_PACKET, .sll_halen = 6,
					    .sll_ifindex = (int)if_nametoindex(x)};
}

static struct cost round_of(struct capture *capture, int out, unsigned int flows,
			    unsigned int packets)
{
	double began = seconds(CLOCK_PROCESS_CPUTIME_ID), read_began, ended;
	unsigned long before = captured;

	packets = packets / BATCH * BATCH;
	send_all(out, &capture->out, flows, packets);
	usleep(15000); /* the last block is handed over */
	read_began = seconds(CLOCK_PROCESS_CPUTIME_ID);
	while (captured - before < packets && capture->dispatch(capture->pcap, -1, keep, NULL) > 0)
		;
	ended = seconds(CLOCK_PROCESS_CPUTIME_ID);
	if (captured - before != packets) {
		fprintf(stderr, "%lu of %u packets were captured\n", captured - before, packets);
		exit(1);
	}
	return (struct cost){(ended - read_began) * 1e9 / packets, (ended - began) * 1e9 / packets};
}

int main(int argc, char **argv)
{
	unsigned int rounds, flows, packets, round, i;
	struct capture captures[2];
	cpu_set_t here = {0};
	int immediate, out;

	if (argc != 11)
		return 2;
	immediate = !strcmp(argv[1], "v2");
	rounds = (unsigned int)atoi(argv[2]);
	flows = (unsigned int)atoi(argv[3]);
	packets = (unsigned int)atoi(argv[4]);
	/* the kernel's work, and all its caches, on the processor of the program */
	CPU_SET(sched_getcpu(), &here);
	sched_setaffinity(0, sizeof(here), &here);
	if (unshare(CLONE_NEWNET) ||
	    system("sysctl -qw net.ipv6.conf.default.disable_ipv6=1 &&"
		   " for i in 0 1; do ip link add x$i type veth peer name y$i &&"
		   " ip link set x$i up && ip link set y$i up || exit 1; done")) {
		fprintf(stderr, "no namespace with veth pairs\n");
		return 1;
	}
	load(&captures[1], argv[8]);
	load(&captures[0], argv[5]);
	if (captures[0].dispatch == captures[1].dispatch) {
		fprintf(stderr, "%s and %s are the same library\n", argv[5], argv[8]);
		return 1;
	}
	open_capture(&captures[0], argv + 5, "x0", "y0", immediate);
	open_capture(&captures[1], argv + 8, "x1", "y1", immediate);
	out = socket(AF_PACKET, SOCK_RAW, 0);
	if (out < 0) {
		perror("socket");
		return 1;
	}
	for (round = 0; round < rounds; round++) {
		struct cost costs[2];

		for (i = 0; i < 2; i++) {
			unsigned int turn = i ^ (round & 1);

			round_of(&captures[turn], out, flows, packets / 4);
			costs[turn] = round_of(&captures[turn], out, flows, packets);
		}
		printf("%.2f %.2f %.2f %.2f\n", costs[0].reading, costs[0].busy, costs[1].reading,
		       costs[1].busy);
	}
	return sink == 1;
}
