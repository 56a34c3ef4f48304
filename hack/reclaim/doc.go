// Package reclaim has memory reclaim wait for a server that needs memory.
//
// The kernel frees memory by writing dirty pages out, and where those go to a device of
// ours, it waits for the server. If the server then waits for memory itself, or is
// throttled as one more writer of dirty pages, nothing moves any more. A server's
// protection is PR_SET_IO_FLUSHER on every thread, locked memory, and a steady path that
// allocates nothing.
//
// The tests run in a guest of hack/vm with little memory: heavy buffered writes through a
// file system on a device whose image lies on a disk of the same machine, with few dirty pages
// allowed, in a cgroup that is full; and swap on a device, while a program touches more memory
// than there is. They measure the longest time without progress. HOLDFAST_RECLAIM says
// for how long (10m), HOLDFAST_FAILSWITCH=no-protect takes the protection away:
//
//	make failpoints && go run ./hack/vm -mem 1G -disk 6G -timeout 30m -env HOLDFAST_RECLAIM=10m -test ./hack/reclaim
package reclaim
