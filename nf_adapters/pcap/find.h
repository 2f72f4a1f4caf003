/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Where the mapping of this process's network namespace is, and mapping it into memory. The one
 * part of the restore library that makes system calls, at activation.
 *
 *   M2M_PCAP=off      captures are what they would be without M2M
 *   M2M_PCAP=PATH     this file, or the fitting one of this directory
 *   (not set)         the fitting one of /run/m2m
 *
 * Of several *.map files in a directory the one of this network namespace fits. A set-uid program
 * is told nothing by its environment.
 *
 * A file that anyone but its owner can write to is refused, and so is one of an owner who is
 * neither root nor this process: who can cut a mapped file short can end its readers.
 */
#ifndef M2M_PCAP_FIND_H
#define M2M_PCAP_FIND_H

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "mapping.h"

#define M2M_MAP_DIRECTORY "/run/m2m"
#define M2M_MAP_ENDING ".map"
#define M2M_PATH_MAX 4096
#define M2M_MAP_LARGE ((size_t)2 << 20) /* bytes of a large page */
#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25 /* Linux 6.1 */
#endif

struct m2m_map_file {
	struct m2m_map map;
	size_t size;
	char path[M2M_PATH_MAX];
};

static inline void m2m_map_close(struct m2m_map_file *file)
{
	if (file->map.header)
		munmap(file->map.header, file->size);
	file->map.header = NULL;
}

/*
 * Map a file so that the kernel can give it large pages, and ask for them: of small ones a large
 * mapping has more than the processor keeps track of (its TLB), and finding the page takes longer
 * than all else that a look-up does. On a file system that has none (not tmpfs) it stays at that.
 */
static inline void *m2m_map_memory(int fd, size_t size)
{
	u8 *room, *memory;

	room = mmap(NULL, size + M2M_MAP_LARGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (room == MAP_FAILED)
		return MAP_FAILED;
	munmap(room, size + M2M_MAP_LARGE);
	room += -(uintptr_t)room & (M2M_MAP_LARGE - 1);
	memory = mmap(room, size, PROT_READ, MAP_SHARED, fd, 0); /* there, unless it was taken again */
	if (memory != MAP_FAILED)
		madvise(memory, size, MADV_COLLAPSE);
	return memory;
}

/* Map file->path; NULL, or why not. file is as it was when not. */
static inline const char *m2m_map_open(struct m2m_map_file *file)
{
	const char *wrong = NULL;
	struct stat about;
	struct m2m_map map;
	void *memory;
	int fd;

	fd = open(file->path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
	if (fd < 0)
		return strerror(errno);
	if (fstat(fd, &about) < 0 || !S_ISREG(about.st_mode))
		wrong = "it is no regular file";
	else if ((about.st_uid != 0 && about.st_uid != geteuid()) || (about.st_mode & 022))
		wrong = "others than root can write to it";
	else if (about.st_size < (off_t)M2M_MAP_START)
		wrong = "it is no mapping";
	if (wrong) {
		close(fd);
		return wrong;
	}
	memory = m2m_map_memory(fd, (size_t)about.st_size);
	close(fd);
	if (memory == MAP_FAILED)
		return strerror(errno);
	wrong = m2m_map_use(&map, memory, (size_t)about.st_size);
	if (wrong) {
		munmap(memory, (size_t)about.st_size);
		return wrong;
	}
	m2m_map_close(file);
	file->map = map;
	file->size = (size_t)about.st_size;
	return NULL;
}

/* Map the file of this directory that is of our network namespace; NULL, or why there is none. */
static inline const char *m2m_map_search(struct m2m_map_file *file, const char *directory)
{
	const char *wrong = "there is no mapping of this network namespace: is an agent running?";
	struct stat space;
	struct dirent *entry;
	DIR *dir;

	if (stat("/proc/thread-self/ns/net", &space) < 0)
		return strerror(errno);
	dir = opendir(directory);
	if (!dir)
		return strerror(errno);
	while ((entry = readdir(dir))) {
		size_t length = strlen(entry->d_name), ending = sizeof(M2M_MAP_ENDING) - 1;
		int written;

		if (length <= ending ||
		    strcmp(entry->d_name + length - ending, M2M_MAP_ENDING) != 0)
			continue;
		written = snprintf(file->path, sizeof(file->path), "%s/%s", directory,
				   entry->d_name);
		if (written < 0 || (size_t)written >= sizeof(file->path))
			continue;
		if (m2m_map_open(file))
			continue; /* of another version, or not ours to read; another one may fit */
		if (file->map.header->netns_dev == (u32)space.st_dev &&
		    file->map.header->netns_ino == (u64)space.st_ino) {
			wrong = NULL;
			break;
		}
		m2m_map_close(file);
	}
	closedir(dir);
	if (wrong)
		snprintf(file->path, sizeof(file->path), "%s", directory);
	return wrong;
}

/*
 * 1: file is mapped. 0: the user wants none. -1: there is none, and *why says what is wrong with
 * file->path.
 */
static inline int m2m_map_find_file(struct m2m_map_file *file, const char **why)
{
	const char *given = secure_getenv("M2M_PCAP");
	struct stat about;

	memset(file, 0, sizeof(*file));
	if (given && strcmp(given, "off") == 0)
		return 0;
	if (!given || !*given)
		given = M2M_MAP_DIRECTORY;
	if (strlen(given) >= sizeof(file->path)) {
		*why = "the name is too long";
		return -1;
	}
	strcpy(file->path, given);
	if (stat(given, &about) < 0)
		*why = strerror(errno);
	else if (S_ISDIR(about.st_mode))
		*why = m2m_map_search(file, given);
	else
		*why = m2m_map_open(file);
	return *why ? -1 : 1;
}

#endif /* M2M_PCAP_FIND_H */
