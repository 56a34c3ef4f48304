// Package failpoint lets tests kill the program at chosen places.
//
// In a program built without the tag "failpoints" all of it compiles to nothing. With
// the tag, two variables of the environment rule it:
//
//	HOLDFAST_FAILPOINT=NAME[:N]    die by SIGKILL at the N-th pass of place NAME (default 1)
//	HOLDFAST_FAILSWITCH=NAME,NAME  turn protections off, for control runs
//
// Both may be changed while the program runs: HOLDFAST_FAILPOINT_FILE names a file whose
// first line, if there is one, stands for HOLDFAST_FAILPOINT, read at each pass, so that a
// test can arm the next death in a server that is already under load. Who dies removes it.
package failpoint
