// Package spawner starts programs for a process that must not fork.
//
// # Why it must not
//
// A new program begins with execve(2), and that closes the descriptors that are marked
// close-on-exec, one after the other, in the new process. To close a file is an
// operation of its file system: FUSE sends FUSE_FLUSH, NFS writes back, and both wait for their
// server. So where a process has files open on storage that hangs, the programs that it starts
// don't begin until the storage is back: a hook that is to tell of the trouble is run
// when it is over. Until then the new process keeps open what it has not closed yet,
// devices and locks among it, for whose release others wait; and who looks at it in /proc may
// wait, too, as for its namespaces on Linux 6.12. A program in
// between is of no use, as it has to be started, too.
//
// And up to these closes, while the kernel reads the program and finds memory for it,
// the thread that starts it waits in a way that Go's scheduler doesn't know of
// (CLONE_VFORK, in a raw system call): the next garbage collection stops all other threads and
// waits for this one. In a process that serves block devices that is no good time to stand still,
// as memory may come free only by writing to these.
//
// # What is done instead
//
// Start, at the very beginning, when no such file is open, runs the same binary once more: the
// spawner, which has nothing open but its end of a socket. It starts what it is told to, but
// not as its own children (CLONE_PARENT): they are ours, to be waited for and signalled as
// ever. Descriptors for a program travel over the socket.
//
//	func main() {
//		spawner.Child() // does not return in the spawner
//		s, err := spawner.Start(func(err error) { log.Print(err) })
//		p, err := s.Start(spawner.Command{Path: "/bin/true"})
//		err = p.Wait()
//
// The spawner ends when the process that started it does, by whatever death: its socket has
// a low number, and so is closed before any file that may hang. What it has started lives on.
// So do programs when the spawner itself dies. But no more are started then, and
// Start says so: a program started directly might hold up everything, and a
// new spawner can't be started otherwise.
//
// A nil *Spawner starts programs directly. That is for tests, and for processes that have no
// files open on storage that may hang.
//
// # Programs on storage that hangs
//
// The program itself may lie there, too. The spawner is a Go program, and not to stand
// still either, so a shell does the last step: Start never waits for the program's storage. A
// program that can't be run is one that ends with status 126 or 127, therefore.
//
// # Concurrency
//
// All methods may be called from anywhere at any time.
package spawner
