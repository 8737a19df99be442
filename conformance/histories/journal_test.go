package histories

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// journal is what a server writes to its standard error, over all its starts.
type journal struct {
	mu   sync.Mutex // guards below
	file *os.File
	line []byte   // the last, as far as it is written
	last []string // lines
	bad  string   // the first that says that the program itself is broken
}

// newJournal makes the journal of a server, a file that go test's -artifacts keeps.
func newJournal(t *testing.T, id string) *journal {
	t.Helper()
	f, err := os.Create(filepath.Join(t.ArtifactDir(), id+".log"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return &journal{file: f}
}

// broken are the beginnings of the lines with which Go's runtime and race detector give up, and what
// net/http writes somewhere in a line.
var broken = []string{"panic: ", "fatal error: ", "WARNING: DATA RACE", "unexpected fault address", "SIGQUIT"}

func (j *journal) Write(p []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.line = append(j.line, p...)
	for {
		line, rest, whole := bytes.Cut(j.line, []byte("\n"))
		if !whole {
			break
		}
		j.read(string(line))
		j.line = rest
	}
	return j.file.Write(p)
}

const lastLines = 200

func (j *journal) read(line string) {
	if j.last = append(j.last, line); len(j.last) >= 2*lastLines {
		j.last = append([]string(nil), j.last[lastLines:]...)
	}
	bad := strings.Contains(line, "http: panic serving")
	for _, begin := range broken {
		bad = bad || strings.HasPrefix(line, begin)
	}
	if bad && j.bad == "" {
		j.bad = line
	}
}

// trouble is the first line that says that the program is broken, or nothing.
func (j *journal) trouble() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.bad
}

// tail is the last lines.
func (j *journal) tail() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return strings.Join(append(j.last[:len(j.last):len(j.last)], string(j.line)), "\n")
}

func TestJournalFindsRacesAndPanics(t *testing.T) {
	for _, test := range []struct {
		parts []string
		bad   bool
	}{
		{[]string{"2026-01-02T03:04:05.006Z [INFO]  s1: all is well\n"}, false},
		{[]string{"2026-01-02T03:04:05.006Z [WARN]  s1: it said: error=\"panic: \"\n"}, false},
		{[]string{"==================\nWARNING: DA", "TA RACE\nWrite at 0x0 by goroutine 7:\n"}, true},
		{[]string{"x\npanic: runtime error\n"}, true},
		{[]string{"fatal error: all goroutines are asleep - deadlock!\n"}, true},
		{[]string{"2026/01/02 03:04:05 http: panic serving 127.0.0.1:1: boom\n"}, true},
	} {
		j := newJournal(t, "s1")
		for _, p := range test.parts {
			j.Write([]byte(p))
		}
		if (j.trouble() != "") != test.bad {
			t.Errorf("%q: %q", test.parts, j.trouble())
		}
	}
}
