//go:build !race

package ploop

const raceEnabled = false
