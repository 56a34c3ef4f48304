// Package state is what the processes of holdfast share through files: in the run directory,
// which ends with the boot, and in the state directory.
package state
