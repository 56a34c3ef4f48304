package uring

import "unsafe"

// SQE is struct io_uring_sqe (linux/io_uring.h). Names of unions are the ones
// that fit most operations; the Prep methods fill them.
type SQE struct {
	Opcode      uint8
	Flags       uint8
	IOPrio      uint16
	Fd          int32
	Off         uint64 // also addr2; low half: cmd_op of URING_CMD
	Addr        uint64
	Len         uint32
	OpFlags     uint32 // rw_flags, fsync_flags, uring_cmd_flags …
	UserData    uint64
	BufIndex    uint16
	Personality uint16
	FileIndex   uint32 // also splice_fd_in
	Cmd         [16]byte
}

// CQE is struct io_uring_cqe.
type CQE struct {
	UserData uint64
	Res      int32
	Flags    uint32
}

type sqringOffsets struct {
	head, tail, ringMask, ringEntries, flags, dropped, array, resv1 uint32
	userAddr                                                        uint64
}

type cqringOffsets struct {
	head, tail, ringMask, ringEntries, overflow, cqes, flags, resv1 uint32
	userAddr                                                        uint64
}

type setupParams struct {
	sqEntries, cqEntries, flags, sqThreadCPU, sqThreadIdle, features, wqFd uint32
	resv                                                                   [3]uint32
	sqOff                                                                  sqringOffsets
	cqOff                                                                  cqringOffsets
}

type kernelTimespec struct {
	sec, nsec int64
}

type geteventsArg struct {
	sigmask     uint64
	sigmaskSz   uint32
	minWaitUsec uint32
	ts          uint64
}

type rsrcRegister struct {
	nr, flags         uint32
	resv2, data, tags uint64
}

// rsrcUpdate is struct io_uring_rsrc_update, io_uring_files_update by its old name.
type rsrcUpdate struct {
	offset, resv uint32
	data         uint64
}

// An array of negative length does not compile: each pair pins a size or an
// offset from both sides.
type (
	_ [unsafe.Sizeof(SQE{}) - 64]struct{}
	_ [64 - unsafe.Sizeof(SQE{})]struct{}
	_ [unsafe.Offsetof(SQE{}.Off) - 8]struct{}
	_ [8 - unsafe.Offsetof(SQE{}.Off)]struct{}
	_ [unsafe.Offsetof(SQE{}.Addr) - 16]struct{}
	_ [16 - unsafe.Offsetof(SQE{}.Addr)]struct{}
	_ [unsafe.Offsetof(SQE{}.Len) - 24]struct{}
	_ [24 - unsafe.Offsetof(SQE{}.Len)]struct{}
	_ [unsafe.Offsetof(SQE{}.OpFlags) - 28]struct{}
	_ [28 - unsafe.Offsetof(SQE{}.OpFlags)]struct{}
	_ [unsafe.Offsetof(SQE{}.UserData) - 32]struct{}
	_ [32 - unsafe.Offsetof(SQE{}.UserData)]struct{}
	_ [unsafe.Offsetof(SQE{}.BufIndex) - 40]struct{}
	_ [40 - unsafe.Offsetof(SQE{}.BufIndex)]struct{}
	_ [unsafe.Offsetof(SQE{}.FileIndex) - 44]struct{}
	_ [44 - unsafe.Offsetof(SQE{}.FileIndex)]struct{}
	_ [unsafe.Offsetof(SQE{}.Cmd) - 48]struct{}
	_ [48 - unsafe.Offsetof(SQE{}.Cmd)]struct{}

	_ [unsafe.Sizeof(CQE{}) - 16]struct{}
	_ [16 - unsafe.Sizeof(CQE{})]struct{}
	_ [unsafe.Offsetof(CQE{}.Res) - 8]struct{}
	_ [8 - unsafe.Offsetof(CQE{}.Res)]struct{}

	_ [unsafe.Sizeof(sqringOffsets{}) - 40]struct{}
	_ [40 - unsafe.Sizeof(sqringOffsets{})]struct{}
	_ [unsafe.Sizeof(cqringOffsets{}) - 40]struct{}
	_ [40 - unsafe.Sizeof(cqringOffsets{})]struct{}
	_ [unsafe.Sizeof(setupParams{}) - 120]struct{}
	_ [120 - unsafe.Sizeof(setupParams{})]struct{}
	_ [unsafe.Offsetof(setupParams{}.sqOff) - 40]struct{}
	_ [40 - unsafe.Offsetof(setupParams{}.sqOff)]struct{}
	_ [unsafe.Offsetof(setupParams{}.cqOff) - 80]struct{}
	_ [80 - unsafe.Offsetof(setupParams{}.cqOff)]struct{}

	_ [unsafe.Sizeof(kernelTimespec{}) - 16]struct{}
	_ [16 - unsafe.Sizeof(kernelTimespec{})]struct{}
	_ [unsafe.Sizeof(geteventsArg{}) - 24]struct{}
	_ [24 - unsafe.Sizeof(geteventsArg{})]struct{}
	_ [unsafe.Offsetof(geteventsArg{}.ts) - 16]struct{}
	_ [16 - unsafe.Offsetof(geteventsArg{}.ts)]struct{}
	_ [unsafe.Sizeof(rsrcRegister{}) - 32]struct{}
	_ [32 - unsafe.Sizeof(rsrcRegister{})]struct{}
	_ [unsafe.Sizeof(rsrcUpdate{}) - 16]struct{}
	_ [16 - unsafe.Sizeof(rsrcUpdate{})]struct{}
)

// Operations: enum io_uring_op.
const (
	opFsync       = 3
	opReadFixed   = 4
	opWriteFixed  = 5
	opAsyncCancel = 14
	opRead        = 22
	opWrite       = 23
	opURingCmd    = 46
)

// Flags of an SQE: IOSQE_*.
const (
	FixedFile = 1 << 0 // Fd is an index into the registered files
	Async     = 1 << 4 // do not even try inline: always a worker thread
)

// fsyncDatasync is IORING_FSYNC_DATASYNC: fdatasync instead of fsync.
const fsyncDatasync = 1 << 0

// io_uring_setup flags: IORING_SETUP_*.
const (
	setupCQSize       = 1 << 3
	setupSubmitAll    = 1 << 7
	setupSQE128       = 1 << 10
	setupSingleIssuer = 1 << 12
	setupDeferTaskrun = 1 << 13
	setupNoSQArray    = 1 << 16
)

const (
	featSingleMmap = 1 << 0
	featNoDrop     = 1 << 1
	featExtArg     = 1 << 8
)

const (
	offSQRing = 0
	offSQEs   = 0x10000000
)

const (
	enterGetEvents      = 1 << 0
	enterExtArg         = 1 << 3
	enterRegisteredRing = 1 << 4
)

// io_uring_register opcodes.
const (
	registerFilesUpdate = 6
	registerFiles2      = 13
	registerBuffers2    = 15
	registerMaxWorkers  = 19
	registerRingFds     = 20
	unregisterRingFds   = 21

	rsrcSparse = 1 << 0
)
