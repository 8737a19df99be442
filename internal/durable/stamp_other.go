//go:build !linux

package durable

import (
	"os"
	"time"
)

// hasStamps: of these systems it is not known which of their file systems tell every change.
func hasStamps(*os.File) bool { return false }

func stampAt(*os.File, time.Time) (s Stamp, ok bool) { return s, false }
