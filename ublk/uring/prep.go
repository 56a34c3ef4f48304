package uring

import "unsafe"

// The Prep methods fill an entry that GetSQE returned. Flags (FixedFile, Async) may be
// or-ed in afterwards; UserData is the caller's too.

// PrepRead reads n bytes at offset off of fd into the memory at addr.
func (s *SQE) PrepRead(fd int, addr unsafe.Pointer, n int, off int64) {
	s.rw(opRead, fd, uint64(uintptr(addr)), n, off)
}

// PrepWrite writes n bytes from the memory at addr to offset off of fd. rwFlags
// are RWF_* of pwritev2(2).
func (s *SQE) PrepWrite(fd int, addr unsafe.Pointer, n int, off int64, rwFlags uint32) {
	s.rw(opWrite, fd, uint64(uintptr(addr)), n, off)
	s.OpFlags = rwFlags
}

// PrepReadFixed reads into the registered buffer buf. addr is an address within the
// buffer as it was registered; for a buffer that a driver registered (a ublk
// request's pages) it is the offset from the buffer's start.
func (s *SQE) PrepReadFixed(fd int, buf uint16, addr uint64, n int, off int64) {
	s.rw(opReadFixed, fd, addr, n, off)
	s.BufIndex = buf
}

// PrepWriteFixed writes from the registered buffer buf; see PrepReadFixed.
func (s *SQE) PrepWriteFixed(fd int, buf uint16, addr uint64, n int, off int64, rwFlags uint32) {
	s.rw(opWriteFixed, fd, addr, n, off)
	s.BufIndex = buf
	s.OpFlags = rwFlags
}

func (s *SQE) rw(op uint8, fd int, addr uint64, n int, off int64) {
	s.Opcode = op
	s.Fd = int32(fd)
	s.Addr = addr
	s.Len = uint32(n)
	s.Off = uint64(off)
}

// PrepFsync makes fd's data durable; datasync leaves out metadata that reading the
// data back does not need.
func (s *SQE) PrepFsync(fd int, datasync bool) {
	s.Opcode = opFsync
	s.Fd = int32(fd)
	if datasync {
		s.OpFlags = fsyncDatasync
	}
}

// PrepCancel asks for the operation whose UserData is target to be cancelled. It
// completes with 0, or -ENOENT when there is none, or -EALREADY when it is
// running and was only signalled.
func (s *SQE) PrepCancel(target uint64) {
	s.Opcode = opAsyncCancel
	s.Fd = -1
	s.Addr = target
}

// PrepURingCmd sends the driver's command op to fd. The command's bytes go to Cmd,
// or Cmd80 on a ring with SQE128.
func (s *SQE) PrepURingCmd(fd int, op uint32) {
	s.Opcode = opURingCmd
	s.Fd = int32(fd)
	s.Off = uint64(op)
}

// Cmd80 is the command area of a 128-byte entry. Only for rings with SQE128.
func (s *SQE) Cmd80() *[80]byte { return (*[80]byte)(unsafe.Pointer(&s.Cmd)) }
