// Package kill proves that holdfast may be killed at any instruction. Its tests
// run the real program in the guests of hack/vm, kill it over and over under
// load, and look for one wrong byte.
//
// # The model
//
// A [Model] knows for every sector of a disk which contents a read may find.
// Each sector that is written carries its own number, the number of the operation
// that wrote it, the model's seed and a checksum. So a read tells apart what was
// acknowledged, what is in flight (both legal), what is old, what belongs
// elsewhere, what is torn, and what another disk's is. Discarded sectors may
// read as before or as zeroes, but from the first read on only as that read said.
// Writers exclude one another by sector, readers nobody.
//
// The model works on any [Disk]. The tests give it disks with built-in lies first:
// a checker that catches none of them would prove nothing.
//
// # The kills
//
// The program is bin/holdfast-failpoints, built with the tag "failpoints" (see
// internal/failpoint), or what HOLDFAST_BINARY names. It dies by SIGKILL at random times, and
// at every named place in turn: it is armed through a file while it
// runs. It is started again at once, and the disk's users must see nothing.
//
// Requests that a dead server had are counted where they are reissued, in
// the driver: the kernel's tracepoint block_rq_requeue, by a histogram of tracefs.
//
// # Controls
//
// Each protection is taken away once, and the same load must then lose: without
// reissue and without recovery users see errors; without the fence a write of
// the dead server lands over newer data.
//
// # Running
//
//	make vm      some kills, on each kernel: places chosen by chance, and the controls
//	make soak    HOLDFAST_KILLS=240, every place in turn, and everything else
//	go run ./hack/vm -env HOLDFAST_KILLS=200 -test ./hack/kill -- -test.run TestKillLoop
//
// The tests are skipped outside of the VM, but for those of the model.
package kill
