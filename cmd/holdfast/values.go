package main

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/urfave/cli/v2"
)

// checkValue says what is wrong with a flag's value, better than its own parser would.
func checkValue(f cli.Flag, value string) error {
	switch f.(type) {
	case *cli.DurationFlag:
		return checkTime(value)
	case *cli.IntFlag:
		if _, err := strconv.ParseInt(value, 0, 64); err != nil {
			return fmt.Errorf("%q is not a whole number", value)
		}
	}
	return nil
}

// checkTime wants what time.ParseDuration takes.
func checkTime(s string) error {
	if _, err := time.ParseDuration(s); err == nil {
		return nil
	}
	if number := strings.TrimLeft(s, "+-"); number != "" && strings.Trim(number, "0123456789.") == "" {
		return fmt.Errorf("%q is a time without a unit: write %ss, %sm or %sh", s, s, s, s)
	}
	return fmt.Errorf("%q is not a time: its units are ms, s, m and h, as in 500ms, 30s, 5m, 1h30m", s)
}
