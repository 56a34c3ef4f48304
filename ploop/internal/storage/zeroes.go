package storage

// AllZero looks at the ends first: most data is found out by its first byte.
func AllZero(p []byte) bool {
	if len(p) == 0 {
		return true
	}
	if p[0] != 0 || p[len(p)-1] != 0 {
		return false
	}
	for len(p) > 0 {
		n := min(len(p), len(zeroes))
		if string(p[:n]) != zeroes[:n] {
			return false
		}
		p = p[n:]
	}
	return true
}

var zeroes = string(make([]byte, 4096))
