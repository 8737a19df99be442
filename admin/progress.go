package admin

import (
	"fmt"
	"io"
	"time"
)

// progress counts what is written to it, and shows it in a line of a terminal until its end.
type progress struct {
	terminal io.Writer
	command  string
	size     int64 // of all that will come, or zero if nobody knows
	done     int64
	drawn    time.Time
}

// eraseLine is what a terminal takes for: back to the margin, and nothing to the right of it.
const eraseLine = "\r\x1b[K"

// Write draws at most ten times a second: a terminal may be slower than what it shows. It never fails,
// for what goes on must not end with who watches it.
func (p *progress) Write(b []byte) (int, error) {
	p.done += int64(len(b))
	if now := time.Now(); now.Sub(p.drawn) >= time.Second/10 {
		p.drawn = now
		fmt.Fprint(p.terminal, eraseLine, p)
	}
	return len(b), nil
}

func (p *progress) String() string {
	if p.size > 0 {
		return fmt.Sprintf("%s: %d%%", p.command, 100*p.done/p.size)
	}
	return fmt.Sprintf("%s: %.1f MB", p.command, float64(p.done)/1e6)
}

// end makes room for what the command has to say.
func (p *progress) end() {
	if !p.drawn.IsZero() {
		fmt.Fprint(p.terminal, eraseLine)
	}
}

// watched is w if it is a terminal, or nothing.
func watched(w io.Writer) io.Writer {
	if isTerminal(w) {
		return w
	}
	return io.Discard
}
