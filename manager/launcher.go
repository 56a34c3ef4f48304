package manager

// An adopter is a launcher that has to be told of the servers that another one has started: its
// processes are not somebody else's, as a service manager's.
type adopter interface {
	Adopt(name string, pid int) error
}
