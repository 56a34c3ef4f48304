package main

import (
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"holdfast/ublk/uring"
)

// procs measures what GOMAXPROCS is good for queues: threads with a ring each, as package
// ublk makes them, of which some are busy and the rest wait for a wake-up. Each setting has a
// process of its own. Natively the machine must have nothing else to do. In a VM, where
// -icount makes the time a count of instructions, which the machine's load has no influence on:
//
//	CGO_ENABLED=0 go build -o build/bench/bench ./hack/bench
//	go run ./hack/vm -icount -cpus 2 -timeout 30m -- build/bench/bench procs -run 1s
func procs(args []string) error {
	f := flag.NewFlagSet("procs", flag.ContinueOnError)
	run := f.Duration("run", 2*time.Second, "`time` of one run")
	idle := f.Int("idle", 16, "`number` of queues that wait")
	one := f.String("one", "", "one run of BUSY:PROCS, in this process")
	if err := f.Parse(args); err != nil {
		return flag.ErrHelp
	}
	cpus := runtime.NumCPU()
	if *one != "" {
		var busy, n int
		if _, err := fmt.Sscanf(*one, "%d:%d", &busy, &n); err != nil {
			return err
		}
		return procsRun(busy, *idle, n, *run)
	}
	fmt.Printf("%d processors, %d idle queues\n%5s %10s | %9s | %-32s | %-32s | %s\n", cpus, *idle, "busy", "GOMAXPROCS", "reads/s",
		"a busy queue's turns: p50 p99 max", "wake-up of an idle queue", "20 collections")
	for _, busy := range []int{1, cpus, 2 * cpus, 4 * cpus} {
		settings := []int{cpus, 2 * cpus, 4 * cpus, busy + *idle + cpus}
		slices.Sort(settings)
		for _, n := range slices.Compact(settings) {
			cmd := exec.Command("/proc/self/exe", "procs", "-one", fmt.Sprintf("%d:%d", busy, n), "-run", run.String(), "-idle", strconv.Itoa(*idle))
			cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
			if err := cmd.Run(); err != nil {
				return err
			}
		}
	}
	return nil
}

// procsQueue is one queue.
type procsQueue struct {
	efd   int
	woken atomic.Int64 // when, in ns since began
	reads atomic.Int64
	turns []time.Duration // lengths of a busy one's; bounded
}

const (
	procsDepth = 8
	procsTurns = 1 << 20
	procsYield = 8 * time.Millisecond // as ublk's
)

func procsRun(busy, idle, procs int, run time.Duration) error {
	runtime.GOMAXPROCS(procs)
	file, err := unix.MemfdCreate("bench", unix.MFD_CLOEXEC)
	if err == nil {
		err = unix.Ftruncate(file, mib)
	}
	if err != nil {
		return err
	}
	began := time.Now()
	var over atomic.Bool
	queues := make([]*procsQueue, busy+idle)
	ready, ended := make(chan error), make(chan struct{}, busy)
	for i := range queues {
		q := &procsQueue{}
		if q.efd, err = unix.Eventfd(0, unix.EFD_CLOEXEC); err != nil {
			return err
		}
		queues[i] = q
		go q.serve(i < busy, file, began, &over, ready, ended)
		if err := <-ready; err != nil {
			return err
		}
	}
	time.Sleep(run / 4)
	total := func() (n int64) {
		for _, q := range queues {
			n += q.reads.Load()
		}
		return n
	}
	from, start := total(), time.Now()
	wakes, err := procsWake(queues[busy:], began, run)
	if err != nil {
		return err
	}
	rate := float64(total()-from) / time.Since(start).Seconds()
	start = time.Now()
	for range 20 {
		runtime.GC()
	}
	gc := time.Since(start)
	var stats debug.GCStats
	debug.ReadGCStats(&stats)
	over.Store(true)
	var turns []time.Duration
	for range busy {
		<-ended
	}
	for _, q := range queues[:busy] {
		turns = append(turns, q.turns...)
	}
	fmt.Printf("%5d %10d | %9.0f | %-32s | %-32s | %v, pause %v\n", busy, procs, rate, spread(turns), spread(wakes), gc.Round(time.Millisecond), slices.Max(stats.Pause).Round(time.Microsecond))
	return nil
}

// procsWake wakes the idle queues in turn, and gives the times that it took.
func procsWake(idle []*procsQueue, began time.Time, run time.Duration) (all []time.Duration, err error) {
	one := binary.NativeEndian.AppendUint64(nil, 1)
	for start, i := time.Now(), 0; time.Since(start) < run; i++ {
		q := idle[i%len(idle)]
		q.woken.Store(0)
		asked := time.Since(began)
		if _, err := unix.Write(q.efd, one); err != nil {
			return nil, err
		}
		for q.woken.Load() == 0 {
			time.Sleep(20 * time.Microsecond)
			if time.Since(began)-asked > 10*time.Second {
				return nil, errors.New("a queue doesn't wake up")
			}
		}
		all = append(all, time.Duration(q.woken.Load())-asked)
		time.Sleep(time.Millisecond)
	}
	return all, nil
}

func spread(all []time.Duration) string {
	if len(all) == 0 {
		return "-"
	}
	slices.Sort(all)
	r := func(d time.Duration) time.Duration { return d.Round(time.Microsecond) }
	return fmt.Sprint(r(all[len(all)/2]), " ", r(all[len(all)*99/100]), " ", r(all[len(all)-1]))
}

// serve is a queue's thread.
func (q *procsQueue) serve(busy bool, file int, began time.Time, over *atomic.Bool, ready chan<- error, ended chan<- struct{}) {
	runtime.LockOSThread()
	ring, err := uring.New(uring.Params{Entries: 2 * procsDepth, CQEntries: 4 * procsDepth})
	if ready <- err; err != nil {
		return
	}
	counter, buf := new(uint64), make([]byte, 4096)
	arm := func() {
		s := ring.GetSQE()
		s.PrepRead(q.efd, unsafe.Pointer(counter), 8, 0)
		s.UserData = 1
	}
	read := func() {
		s := ring.GetSQE()
		s.PrepRead(file, unsafe.Pointer(&buf[0]), len(buf), (q.reads.Load()*4096)%mib)
	}
	arm()
	if busy {
		q.turns = make([]time.Duration, 0, procsTurns)
		for range procsDepth {
			read()
		}
	}
	yielded, last := time.Duration(0), time.Since(began)
	for !over.Load() {
		if _, err := ring.SubmitAndWait(1, -1); err != nil {
			panic(err)
		}
		n := ring.Ready()
		for i := range n {
			if ring.At(i).UserData == 1 {
				q.woken.Store(int64(time.Since(began)))
				arm()
			} else {
				q.reads.Add(1)
				read()
			}
		}
		ring.Consume(n)
		if !busy {
			continue
		}
		now := time.Since(began)
		if len(q.turns) < procsTurns {
			q.turns = append(q.turns, now-last)
		}
		if last = now; now-yielded > procsYield {
			yielded = now
			runtime.Gosched()
		}
	}
	if busy {
		ended <- struct{}{}
	}
}
