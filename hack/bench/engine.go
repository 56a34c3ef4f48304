package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"runtime"
	"runtime/pprof"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"holdfast/ploop"
	"holdfast/ploop/stack"
	"holdfast/standby"
	"holdfast/ublk/uring"
)

// pattern is a sequence of requests as qemu-img bench makes it: request i is
// at i*Step modulo the disk's size.
type pattern struct {
	Write bool
	Fill  bool  // of an image that is empty before each run
	Block int   // bytes a request
	Step  int64 // bytes from one request to the next
	Depth int   // requests in flight
	Count int
}

// engine is the fast path of a queue without the driver: one thread, one ring,
// registered files, a Reader, and a memory buffer per request in flight instead
// of a ublk request's pages.
type engine struct {
	stack  *stack.Stack
	reader *stack.Reader
	ring   *uring.Ring
	memory []byte
	tokens []uint32 // of Locate, by buffer
	free   []int    // buffers at rest
	// gate is looked at by each request, as package device does; nil: it isn't.
	gate *standby.Gate
}

// newEngine must be called, and the engine used, on one locked thread.
func newEngine(s *stack.Stack, block, depth int) (_ *engine, err error) {
	e := &engine{stack: s, reader: s.NewReader(), tokens: make([]uint32, depth)}
	for i := range depth {
		e.free = append(e.free, i)
	}
	if e.ring, err = uring.New(uring.Params{Entries: depth}); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			e.close()
		}
	}()
	if err := e.ring.RegisterRing(); err != nil {
		return nil, err
	}
	fds := s.Fds()
	if err := e.ring.RegisterFilesSparse(len(fds)); err != nil {
		return nil, err
	}
	for slot, fd := range fds {
		if err := e.ring.UpdateFile(slot, fd); err != nil {
			return nil, err
		}
	}
	e.memory, err = unix.Mmap(-1, 0, block*depth, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_POPULATE)
	return e, err
}

func (e *engine) close() error {
	// The kernel takes a closed ring apart later, in the background, and the
	// files registered with it, and their locks, live until then.
	var err error
	for slot := range e.stack.Fds() {
		err = errors.Join(err, e.ring.UpdateFile(slot, -1))
	}
	err = errors.Join(err, e.ring.Close())
	if e.memory != nil {
		err = errors.Join(err, unix.Munmap(e.memory))
	}
	return err
}

// submitPart is how many requests are prepared at most before the kernel gets
// them.
const submitPart = 8

// run does p.Count requests and returns how often it entered the kernel. It
// allocates nothing.
func (e *engine) run(p *pattern) (enters int, err error) {
	size, off := e.stack.Size(), int64(0)
	for sent, done := 0, 0; done < p.Count; {
		for len(e.free) > 0 && sent < p.Count {
			if err := e.start(p, off); err != nil {
				return enters, err
			}
			sent++
			// What one entry submits goes to the disk together and at its end.
			// Handing in a large batch by parts lets the disk begin; all at
			// once has cost 10 to 15% of the rate at depth 32 on virtio.
			if e.ring.Pending() >= submitPart {
				if _, err := e.ring.Submit(); err != nil && err != unix.EAGAIN && err != unix.EBUSY {
					return enters, err
				}
				enters++
			}
			off = (off + p.Step) % size
		}
		if _, err := e.ring.SubmitAndWait(1, -1); err != nil && err != unix.EAGAIN && err != unix.EBUSY {
			return enters, err
		}
		enters++
		n := e.ring.Ready()
		for i := range n {
			c := e.ring.At(i)
			if int(c.Res) != p.Block {
				return enters, fmt.Errorf("transfer of %d bytes: result %d", p.Block, c.Res)
			}
			b := int(c.UserData)
			e.reader.Leave(e.tokens[b])
			e.free = append(e.free, b)
		}
		e.ring.Consume(n)
		done += n
	}
	return enters, nil
}

func (e *engine) start(p *pattern, off int64) error {
	if e.gate != nil && e.gate.Closed() {
		return errors.New("the gate is closed")
	}
	at := e.reader.Locate(off, p.Block, p.Write)
	if at.Where != stack.Direct {
		return fmt.Errorf("offset %d is not on the fast path: the image must be fully allocated", off)
	}
	b := e.free[len(e.free)-1]
	e.free = e.free[:len(e.free)-1]
	e.tokens[b] = at.Token
	s := e.ring.GetSQE() // as many entries as buffers
	memory := unsafe.Pointer(&e.memory[b*p.Block])
	if p.Write {
		s.PrepWrite(at.Level, memory, p.Block, at.Offset, 0)
	} else {
		s.PrepRead(at.Level, memory, p.Block, at.Offset)
	}
	s.Flags = uring.FixedFile
	s.UserData = uint64(b)
	return nil
}

// engineResult is what a run in a process of its own prints.
type engineResult struct {
	Seconds float64 `json:"seconds"`
	Enters  int     `json:"enters"`
	Mallocs uint64  `json:"mallocs"`
	Direct  bool    `json:"direct"`
}

// engineMain is the subcommand: one run on an image, with a line of JSON at the
// end. As a process of its own it pays for start and end as qemu-img does.
func engineMain(args []string) (err error) {
	var p pattern
	f := flag.NewFlagSet("engine", flag.ContinueOnError)
	f.BoolVar(&p.Write, "write", false, "write instead of read")
	f.IntVar(&p.Block, "block", 4096, "`bytes` a request")
	f.Int64Var(&p.Step, "step", 4096, "`bytes` from one request to the next")
	f.IntVar(&p.Depth, "depth", 1, "`number` of requests in flight")
	f.IntVar(&p.Count, "count", 1000, "`number` of requests")
	cpu := f.String("cpuprofile", "", "write a CPU profile to this `file`")
	if err := f.Parse(args); err != nil {
		return flag.ErrHelp
	}
	if f.NArg() != 1 {
		return errors.New("engine: want one image")
	}
	runtime.LockOSThread()
	stack, err := stack.Open([]ploop.ImageRef{{Path: f.Arg(0)}}, stack.Options{ReadOnly: !p.Write})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, stack.Close()) }()
	e, err := newEngine(stack, p.Block, p.Depth)
	if err != nil {
		return err
	}
	defer e.close()
	if *cpu != "" {
		out, err := os.Create(*cpu)
		if err != nil {
			return err
		}
		defer out.Close()
		if err := pprof.StartCPUProfile(out); err != nil {
			return err
		}
		defer pprof.StopCPUProfile()
	}
	r := engineResult{Direct: stack.Status().Images[0].Direct}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	begin := time.Now()
	r.Enters, err = e.run(&p)
	r.Seconds = time.Since(begin).Seconds()
	runtime.ReadMemStats(&after)
	if err != nil {
		return err
	}
	r.Mallocs = after.Mallocs - before.Mallocs
	return json.NewEncoder(os.Stdout).Encode(r)
}
