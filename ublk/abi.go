package ublk

import "unsafe"

// The structures and numbers of linux/ublk_cmd.h, by their names there.

// ctrlCmd is struct ublksrv_ctrl_cmd.
type ctrlCmd struct {
	devID      uint32
	queueID    uint16
	len        uint16
	addr       uint64
	data       uint64
	devPathLen uint16
	pad        uint16
	reserved   uint32
}

// devInfo is struct ublksrv_ctrl_dev_info.
type devInfo struct {
	nrHWQueues    uint16
	queueDepth    uint16
	state         uint16
	pad0          uint16
	maxIOBufBytes uint32
	devID         uint32
	ublksrvPID    int32
	pad1          uint32
	flags         uint64
	ublksrvFlags  uint64
	ownerUID      uint32
	ownerGID      uint32
	reserved1     uint64
	reserved2     uint64
}

// ioDesc is struct ublksrv_io_desc: what the driver says about the request of a
// tag, in memory that it shares with us.
type ioDesc struct {
	opFlags     uint32
	nrSectors   uint32
	startSector uint64
	addr        uint64
}

// ioCmd is struct ublksrv_io_cmd: what we say about a tag.
type ioCmd struct {
	qID    uint16
	tag    uint16
	result int32
	addr   uint64
}

type paramBasic struct {
	attrs           uint32
	logicalBSShift  uint8
	physicalBSShift uint8
	ioOptShift      uint8
	ioMinShift      uint8
	maxSectors      uint32
	chunkSectors    uint32
	devSectors      uint64
	virtBoundary    uint64
}

type paramDiscard struct {
	alignment             uint32
	granularity           uint32
	maxDiscardSectors     uint32
	maxWriteZeroesSectors uint32
	maxDiscardSegments    uint16
	reserved0             uint16
}

type paramDevt struct {
	charMajor, charMinor, diskMajor, diskMinor uint32
}

type paramZoned struct {
	_ [8]uint32
}

type paramDMAAlign struct {
	alignment uint32
	pad       uint32
}

type paramSegment struct {
	boundaryMask uint64
	maxSize      uint32
	maxSegments  uint16
	pad          [2]uint8
}

type paramIntegrity struct {
	_ [4]uint32
}

// params is struct ublk_params. An older driver reads as much of it as it knows.
type params struct {
	len       uint32
	types     uint32
	basic     paramBasic
	discard   paramDiscard
	devt      paramDevt
	zoned     paramZoned
	dma       paramDMAAlign
	_         uint32
	segment   paramSegment
	integrity paramIntegrity
}

// Lengths of zero or the build fails.
type (
	_ [unsafe.Sizeof(ctrlCmd{}) - 32]struct{}
	_ [32 - unsafe.Sizeof(ctrlCmd{})]struct{}
	_ [unsafe.Offsetof(ctrlCmd{}.addr) - 8]struct{}
	_ [8 - unsafe.Offsetof(ctrlCmd{}.addr)]struct{}
	_ [unsafe.Offsetof(ctrlCmd{}.data) - 16]struct{}
	_ [16 - unsafe.Offsetof(ctrlCmd{}.data)]struct{}

	_ [unsafe.Sizeof(devInfo{}) - 64]struct{}
	_ [64 - unsafe.Sizeof(devInfo{})]struct{}
	_ [unsafe.Offsetof(devInfo{}.maxIOBufBytes) - 8]struct{}
	_ [8 - unsafe.Offsetof(devInfo{}.maxIOBufBytes)]struct{}
	_ [unsafe.Offsetof(devInfo{}.flags) - 24]struct{}
	_ [24 - unsafe.Offsetof(devInfo{}.flags)]struct{}
	_ [unsafe.Offsetof(devInfo{}.ublksrvFlags) - 32]struct{}
	_ [32 - unsafe.Offsetof(devInfo{}.ublksrvFlags)]struct{}

	_ [unsafe.Sizeof(ioDesc{}) - 24]struct{}
	_ [24 - unsafe.Sizeof(ioDesc{})]struct{}
	_ [unsafe.Sizeof(ioCmd{}) - 16]struct{}
	_ [16 - unsafe.Sizeof(ioCmd{})]struct{}
	_ [unsafe.Offsetof(ioCmd{}.addr) - 8]struct{}
	_ [8 - unsafe.Offsetof(ioCmd{}.addr)]struct{}

	_ [unsafe.Sizeof(paramBasic{}) - 32]struct{}
	_ [32 - unsafe.Sizeof(paramBasic{})]struct{}
	_ [unsafe.Sizeof(paramDiscard{}) - 20]struct{}
	_ [20 - unsafe.Sizeof(paramDiscard{})]struct{}
	_ [unsafe.Sizeof(params{}) - 152]struct{}
	_ [152 - unsafe.Sizeof(params{})]struct{}
	_ [unsafe.Offsetof(params{}.discard) - 40]struct{}
	_ [40 - unsafe.Offsetof(params{}.discard)]struct{}
	_ [unsafe.Offsetof(params{}.devt) - 60]struct{}
	_ [60 - unsafe.Offsetof(params{}.devt)]struct{}
	_ [unsafe.Offsetof(params{}.zoned) - 76]struct{}
	_ [76 - unsafe.Offsetof(params{}.zoned)]struct{}
	_ [unsafe.Offsetof(params{}.dma) - 108]struct{}
	_ [108 - unsafe.Offsetof(params{}.dma)]struct{}
	_ [unsafe.Offsetof(params{}.segment) - 120]struct{}
	_ [120 - unsafe.Offsetof(params{}.segment)]struct{}
	_ [unsafe.Offsetof(params{}.integrity) - 136]struct{}
	_ [136 - unsafe.Offsetof(params{}.integrity)]struct{}
)

// ioctl encoding (asm-generic/ioctl.h) of a command of type 'u': read commands
// copy to us, read-write ones both ways.
const (
	iocR  = 2 << 30
	iocWR = 3 << 30
	iocU  = 'u' << 8

	iocCtrlR  = iocR | 32<<16 | iocU  // _IOR('u', nr, struct ublksrv_ctrl_cmd)
	iocCtrlWR = iocWR | 32<<16 | iocU // _IOWR('u', nr, struct ublksrv_ctrl_cmd)
	iocIO     = iocWR | 16<<16 | iocU // _IOWR('u', nr, struct ublksrv_io_cmd)
)

// Control commands, UBLK_U_CMD_*.
const (
	cmdGetQueueAffinity  = iocCtrlR | 0x01
	cmdGetDevInfo        = iocCtrlR | 0x02
	cmdAddDev            = iocCtrlWR | 0x04
	cmdDelDev            = iocCtrlWR | 0x05
	cmdStartDev          = iocCtrlWR | 0x06
	cmdStopDev           = iocCtrlWR | 0x07
	cmdSetParams         = iocCtrlWR | 0x08
	cmdGetParams         = iocCtrlR | 0x09
	cmdStartUserRecovery = iocCtrlWR | 0x10
	cmdEndUserRecovery   = iocCtrlWR | 0x11
	cmdGetFeatures       = iocCtrlR | 0x13
	cmdDelDevAsync       = iocCtrlR | 0x14
	cmdUpdateSize        = iocCtrlWR | 0x15
	cmdTryStopDev        = iocCtrlWR | 0x17
)

// I/O commands, UBLK_U_IO_*.
const (
	ioFetchReq          = iocIO | 0x20
	ioCommitAndFetchReq = iocIO | 0x21
)

// Bits 8 and up of ioDesc.opFlags, UBLK_IO_F_*.
const (
	ioFlagFUA        = 1 << 13
	ioFlagNoUnmap    = 1 << 15
	ioFlagNeedRegBuf = 1 << 17
)

// autoBufRegFallback is UBLK_AUTO_BUF_REG_FALLBACK in the flags byte of struct
// ublk_auto_buf_reg, which travels in an SQE's addr (index in bits 0–15, flags
// in 16–23): deliver a request even when its pages could not be registered.
const autoBufRegFallback = 1 << 16

// Parameter types and attributes, UBLK_PARAM_TYPE_* and UBLK_ATTR_*.
const (
	paramTypeBasic    = 1 << 0
	paramTypeDiscard  = 1 << 1
	paramTypeDMAAlign = 1 << 4

	attrReadOnly      = 1 << 0
	attrRotational    = 1 << 1
	attrVolatileCache = 1 << 2
	attrFUA           = 1 << 3
)

// Limits of the driver.
const (
	// MaxQueues is UBLK_MAX_NR_QUEUES; ADD_DEV cuts it down to the number of
	// possible CPUs.
	MaxQueues = 4096
	// MaxDepth is UBLK_MAX_QUEUE_DEPTH.
	MaxDepth = 4096
	// MaxIOSize is 1<<UBLK_IO_BUF_BITS: bytes of one READ or WRITE.
	MaxIOSize = 32 << 20

	sectorShift = 9
	// maxRangeSectors caps DISCARD and WRITE_ZEROES: the block layer counts the
	// bytes of one request in 32 bits.
	maxRangeSectors = 1<<32>>sectorShift - 1

	// descStride is the distance of two queues' descriptors in the mapping of
	// /dev/ublkcN: room for MaxDepth of them, whatever the depth.
	descStride = MaxDepth * int(unsafe.Sizeof(ioDesc{}))
	// userCopyBase is UBLKSRV_IO_BUF_OFFSET: where in /dev/ublkcN pread and
	// pwrite find the pages of requests.
	userCopyBase = 0x80000000
)

// userCopyOffset is where the pages of a tag's request begin in /dev/ublkcN.
func userCopyOffset(queue, tag int) int64 {
	return userCopyBase + int64(queue)<<41 + int64(tag)<<25
}
