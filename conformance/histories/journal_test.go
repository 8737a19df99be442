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
	race []string // the report of a race that is being written
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
	if line == "WARNING: DATA RACE" || j.race != nil {
		j.race = append(j.race, line)
		if line != "==================" {
			return // it is judged as a whole
		}
		report := strings.Join(j.race, "\n")
		if j.race = nil; knownRace(report) {
			return
		}
		line = report
	}
	bad := strings.Contains(line, "http: panic serving")
	for _, begin := range broken {
		bad = bad || strings.HasPrefix(line, begin)
	}
	if bad && j.bad == "" {
		j.bad = line
	}
}

// knownRace reports whether a report is of a race in raft 1.7.3, harmless and not ours: when a server has
// another address, startStopReplication writes what updateLastAppended reads without the lock, and that
// reads the ID alone, which is the same text before and after.
func knownRace(report string) bool {
	return strings.Contains(report, "raft.updateLastAppended(") && strings.Contains(report, "raft.(*Raft).startStopReplication(")
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
		{[]string{"==================\nWARNING: DA", "TA RACE\nWrite at 0x0 by goroutine 7:\n==================\n"}, true},
		{[]string{"WARNING: DATA RACE\nRead by goroutine 7:\n  raft.updateLastAppended()\n\nWrite by goroutine 8:\n  raft.(*Raft).startStopReplication()\n==================\n"}, false},
		{[]string{"WARNING: DATA RACE\nRead by goroutine 7:\n  raft.updateLastAppended()\n\nWrite by goroutine 8:\n  main.main()\n==================\n"}, true},
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
