package device

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"holdfast/ploop"
)

// permission says whether requests may fail.
type permission struct {
	mu    sync.Mutex
	open  bool
	times int // that it was opened
}

func (p *permission) set(open bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if open && !p.open {
		p.times++
	}
	p.open = open
}

// begin is called before a request, and what it gives after it: then it says
// whether that might have failed.
func (p *permission) begin() func() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	open, times := p.open, p.times
	return func() bool {
		p.mu.Lock()
		defer p.mu.Unlock()
		return open || p.times != times
	}
}

// walker is a user of the device, with some clusters for itself.
type walker struct {
	w       *walk
	first   uint64 // block
	version uint64 // the last that was written
	// legal are the versions that each sector of a block may be of: the last one
	// that was acknowledged, and those whose writes failed since.
	legal [][]uint64
	rng   *rand.Rand
	jobs  chan string
	doing atomic.Value

	ok, failed map[string]int
}

func (k *walker) run() {
	k.ok, k.failed = map[string]int{}, map[string]int{}
	for job := range k.jobs {
		if job == "" {
			continue
		}
		k.doing.Store(job)
		k.do(job)
	}
}

func (k *walker) do(job string) {
	fd, i := k.w.fd, k.rng.IntN(len(k.legal))
	mayFail := k.w.allowed.begin()
	var err error
	switch job {
	case "check":
		for i := range k.legal {
			if err = k.read(fd, i); err != nil {
				break
			}
		}
	case "read":
		err = k.read(fd, i)
	case "write", "through":
		n := min(1+k.rng.IntN(4), len(k.legal)-i)
		k.version++
		p := ploop.AlignedBuffer(n * blockSize)
		for b := range n {
			fill(p[b*blockSize:][:blockSize], k.first+uint64(i+b), k.version)
		}
		flags := 0
		if job == "through" {
			flags = unix.RWF_DSYNC
		}
		var done int
		done, err = unix.Pwritev2(int(fd), [][]byte{p}, int64(k.first+uint64(i))*blockSize, flags)
		if err == nil && done != len(p) {
			err = unix.EIO // a part was done
		}
		k.now(i, n, k.version, err == nil)
	case "zero":
		n := min(1+k.rng.IntN(20), len(k.legal)-i)
		err = fd.zero(k.first+uint64(i), uint64(n))
		k.now(i, n, 0, err == nil)
	case "discard":
		i = i / clusterBlocks * clusterBlocks
		err = fd.discard(k.first+uint64(i), clusterBlocks)
		k.now(i, clusterBlocks, 0, false) // it needn't do anything
	case "flush":
		err = fd.flush()
	}
	if err == nil {
		k.ok[job]++
		return
	}
	k.failed[job]++
	if _, wrong := err.(wrongData); wrong || !mayFail() {
		k.w.t.Errorf("%s of block %d: %v", job, k.first+uint64(i), err)
	}
}

// now records a write, and whether it is known to be done.
func (k *walker) now(i, n int, version uint64, done bool) {
	for b := i; b < i+n; b++ {
		switch {
		case done:
			k.legal[b] = []uint64{version}
		case !slices.Contains(k.legal[b], version):
			k.legal[b] = append(slices.Clone(k.legal[b]), version)
		}
	}
}

type wrongData string

func (e wrongData) Error() string { return string(e) }

func (k *walker) read(fd rawDisk, i int) error {
	p := ploop.AlignedBuffer(blockSize)
	if err := whole(unix.Pread(int(fd), p, int64(k.first+uint64(i))*blockSize)); err != nil {
		return err
	}
	return k.judge(i, p)
}

// judge compares a block's content with what it may be.
func (k *walker) judge(i int, p []byte) error {
	b := k.first + uint64(i)
	for s := 0; s < len(p); s += 512 {
		v, err := versionOf(p[s:][:512], b)
		if err != nil {
			return wrongData(fmt.Sprintf("%v; sectors and their blocks and versions: %v", err, contents(p)))
		}
		if !slices.Contains(k.legal[i], v) {
			return wrongData(fmt.Sprintf("sector %d of block %d is of version %d, and may be of %v", s/512, b, v, k.legal[i]))
		}
	}
	return nil
}

// contents says what fill has put into sectors: block and version.
func contents(p []byte) (all [][2]uint64) {
	for s := 0; s < len(p); s += 512 {
		all = append(all, [2]uint64{binary.LittleEndian.Uint64(p[s:]), binary.LittleEndian.Uint64(p[s+8:])})
	}
	return all
}

// walkerStats sums up what was done, after the walkers' rest.
func (w *walk) walkerStats() string {
	ok, failed := map[string]int{}, map[string]int{}
	for _, k := range w.walkers {
		for job, n := range k.ok {
			ok[job] += n
		}
		for job, n := range k.failed {
			failed[job] += n
		}
	}
	return fmt.Sprintf("done %v, failed %v", ok, failed)
}
