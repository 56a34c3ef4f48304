package main

import (
	"fmt"
	"math"
	"strconv"
	"strings"
)

const units = "KMGTPE"

// parseSize reads a size as people write it: bytes, or a whole number and a unit
// that is a power of 1024: 512M, 10G, 1T; also 10GiB. "10GB" is refused, as
// nobody can know which of the two gigabytes was meant.
func parseSize(s string) (int64, error) {
	digits := strings.TrimRight(s, "KMGTPEIBkmgtpeib")
	unit := strings.TrimSuffix(strings.ToUpper(s[len(digits):]), "IB")
	n, err := strconv.ParseUint(digits, 10, 63)
	if digits == "" || err != nil && !strings.Contains(err.Error(), "out of range") {
		return 0, fmt.Errorf("%q is not a size: give bytes or a whole number with K, M, G, T, P or E, as in 10G", s)
	}
	shift := 0
	switch {
	case unit == "" && len(digits) == len(s):
	case unit == "B" && len(digits)+1 == len(s):
	case len(unit) == 1 && strings.Contains(units, unit):
		shift = 10 * (1 + strings.Index(units, unit))
	default:
		return 0, fmt.Errorf("%q is not a size: its unit %q is not one of K, M, G, T, P, E (powers of 1024)", s, s[len(digits):])
	}
	if err != nil || n > math.MaxInt64>>shift {
		return 0, fmt.Errorf("size %q is too large", s)
	}
	return int64(n) << shift, nil
}

// formatSize is a size as lsblk shows it: 10G, 1.5T, 512B, one decimal at most.
func formatSize(n int64) string {
	if n < 1024 {
		return fmt.Sprintf("%dB", n)
	}
	f, u := float64(n), -1
	for f >= 1024 && u < len(units)-1 {
		f /= 1024
		u++
	}
	s := strconv.FormatFloat(f, 'f', 1, 64)
	return strings.TrimSuffix(s, ".0") + units[u:u+1]
}
