// Package story tells the story that holdfast was written for, on real
// components, as tests for the guests of hack/vm:
//
//	initiator's disk /dev/sdX   fio writes and verifies
//	  open-iscsi, loopback TCP
//	LIO target, block backstore
//	/dev/ublkbN                 holdfast
//	image file
//	FUSE mount one | two        the same GlusterFS volume, replica 2
//	brick 1, brick 2            killed, and started again
//
// When the bricks are killed every call on the mounts fails with ENOTCONN, at
// once; or with EBADFD, for a moment in which a client knows that its files'
// handles are void, and not yet that nobody is left to ask. The device must go to standby and hold; the initiator must see nothing
// but a wait. When the bricks are back, the image is replaced by the same file
// seen through the other mount, and fio must come to its end with every block
// as written.
//
// A control does the same with the standby check off, and must see the
// initiator fail: without it the rest would prove nothing.
//
// Each layer has a file of its own: daemon_test.go, gluster_test.go, lio_test.go,
// initiator_test.go, fio_test.go. The volume and its two mounts are made once and
// used by all tests; targets, sessions and devices belong to one test each.
//
// # Running
//
//	make vm      the story once, and the control, on the newest kernel
//	make soak    HOLDFAST_ROUNDS=10, and the variants
//
// The tests change what there is one of in a machine (glusterd, iscsid, the
// kernel's target), so they run in the VM only, and are skipped elsewhere. The
// program under test is bin/holdfast, or what HOLDFAST_BINARY names.
//
// # What the volume must promise
//
// holdfast opens images with O_DIRECT and takes an acknowledged write for a
// write in the storage. GlusterFS answers early and reads from caches unless it
// is told not to; see volumeOptions for what has to be said.
package story
