// Package powercut cuts the power of a disk that has a file system with images on it.
//
// ploop/stack plays power cuts on storage of its own making (TestPowerCut there). Here the storage is a
// real file system, with its journal, its reserved extents and its idea of what fdatasync is: on a disk
// that remembers which writes are durable. The disk is a ublk device of the test's own. What a cut
// leaves of it is what was durable, and of everything written since whatever the cut chooses, torn at
// sectors; the blocks that nobody has written are full of another's data. The file system is mounted
// from that, which replays its journal; then the image must check clean, and each of its blocks
// hold a version that was acknowledged or under way, none older than the last flush, and nothing that
// isn't the image's own.
//
// The tests run in a guest of hack/vm:
//
//	go run ./hack/vm -test ./hack/powercut
//
// With the protection off they must find something:
//
//	go run ./hack/vm -tags failpoints -env HOLDFAST_FAILSWITCH=no-durable-room -test ./hack/powercut
//
// HOLDFAST_CUTS is the number of cuts of each file system.
package powercut
