package docs_test

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"example.com/keyring/internal/durable"
	"example.com/keyring/internal/keyringtest"
	"example.com/keyring/internal/nks"
	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
)

const crashSafety = "docs/crash-safety.md"

// TestCrashSafetyHasEveryChange: the table has each function that changes the directory, and no other.
func TestCrashSafetyHasEveryChange(t *testing.T) {
	others := []string{ // which change nothing that is a key's
		"Close", "HangsSince", "HasPlace", "InPlace", "List", "LoadSynced", "NoteSynced", "OnHang", "OnRepair", "Read", "ReadOwn", "Sync",
	}
	_, section, _ := strings.Cut(keyringtest.Pages(t)[crashSafety], "\n## How the keystore directory changes\n")
	section, _, _ = strings.Cut(section, "\n## ")
	var want, got []string
	for line := range strings.Lines(section) {
		if row := cells(line); len(row) == 4 && row[1] != "function" && !slices.Contains(got, strings.Trim(row[1], "`")) {
			got = append(got, strings.Trim(row[1], "`"))
		}
	}
	for m := range reflect.TypeFor[*durable.Dir]().Methods() {
		if !slices.Contains(others, m.Name) {
			want = append(want, m.Name)
		}
	}
	if slices.Sort(got); !slices.Equal(got, want) {
		t.Errorf("the table has %q, package durable has %q", got, want)
	}
}

// TestFiguresOfCrashSafety: how much is tested, and what is too large for a key file.
func TestFiguresOfCrashSafety(t *testing.T) {
	drill, err := os.ReadFile("../internal/keyringtest/syscalls_linux.go")
	if err != nil {
		t.Fatal(err)
	}
	errnos := regexp.MustCompile(`"error=(E\w+)"`).FindAllStringSubmatch(string(drill), -1)
	crashes := regexp.MustCompile(`flag.Int\("crashes", (\d+),`).FindStringSubmatch(keyringtest.TestFiles(t)["internal/keystore/crash_test.go"])
	if len(errnos) == 0 || crashes == nil {
		t.Fatalf("errors %v, crashes %v", errnos, crashes)
	}
	var names []string
	for _, e := range errnos {
		if !slices.Contains(names, e[1]) {
			names = append(names, e[1])
		}
	}
	last := len(names) - 1
	checkFigures(t, []figure{
		{crashSafety, fmt.Sprintf("a file of more than %d MiB", nks.MaxFile>>20)},
		{crashSafety, fmt.Sprintf("fails with each of %s and %s.", strings.Join(names[:last], ", "), names[last])},
		{crashSafety, "tries " + strings.TrimSuffix(crashes[1], "000") + ",000 random crashes"},
	})
}

// TestLockThatIsADirectoryStopsTheStart: one process could not tell another that it has the directory.
func TestLockThatIsADirectoryStopsTheStart(t *testing.T) {
	lock := filepath.Join(t.TempDir(), ".lock")
	if err := os.Mkdir(lock, 0o700); err != nil {
		t.Fatal(err)
	}
	d, err := durable.OpenDir(filepath.Dir(lock))
	if err == nil {
		d.Close()
		t.Fatal("opened")
	}
	if !strings.Contains(err.Error(), filepath.Dir(lock)) {
		t.Error(err)
	}
}

// brokenRaft is a raft of one server whose disk breaks.
type brokenRaft struct {
	*raft.InmemStore
	unreadable, unwritable atomic.Bool
}

var errDisk = errors.New("input/output error")

func (b *brokenRaft) GetLog(index uint64, l *raft.Log) error {
	if b.unreadable.Load() {
		return errDisk
	}
	return b.InmemStore.GetLog(index, l)
}

func (b *brokenRaft) SetUint64(key []byte, value uint64) error {
	if b.unwritable.Load() {
		return errDisk
	}
	return b.InmemStore.SetUint64(key, value)
}

// start has raft begin an election on the disk, which breaks then.
func (b *brokenRaft) start(broken *atomic.Bool) error {
	conf := raft.DefaultConfig()
	conf.LocalID, conf.LogOutput = "s1", io.Discard
	addr, trans := raft.NewInmemTransport("s1")
	snaps := raft.NewInmemSnapshotStore()
	servers := raft.Configuration{Servers: []raft.Server{{ID: conf.LocalID, Address: addr}}}
	if err := raft.BootstrapCluster(conf, b, b, snaps, trans, servers); err != nil {
		return err
	}
	if _, err := raft.NewRaft(conf, keyringtest.NullFSM{}, b, b, snaps, trans); err != nil {
		return err
	}
	broken.Store(true)
	select {}
}

// readLog has raft's log in a file, and reads of it what the disk can't give.
func readLog() error {
	dir, err := os.MkdirTemp("", "")
	if err != nil {
		return err
	}
	path := filepath.Join(dir, "raft.db")
	log, err := raftboltdb.NewBoltStore(path)
	if err != nil {
		return err
	}
	for i := range uint64(100) {
		if err := log.StoreLog(&raft.Log{Index: i, Data: make([]byte, 10_000)}); err != nil {
			return err
		}
	}
	if err := errors.Join(os.Truncate(path, 0), os.RemoveAll(dir)); err != nil { // to the system, what is beyond the end is such an error
		return err
	}
	return log.GetLog(50, new(raft.Log))
}

// TestWhatEndsTheProcess is all that the page says of that: another process does it, and ends.
func TestWhatEndsTheProcess(t *testing.T) {
	const way = "KEYRING_DOCS_END_BY"
	b := &brokenRaft{InmemStore: raft.NewInmemStore()}
	ways := map[string]struct {
		end  func() error
		says string
	}{
		"an entry that can't be read":      {func() error { return b.start(&b.unreadable) }, "panic: " + errDisk.Error()},
		"a term that can't be written":     {func() error { return b.start(&b.unwritable) }, "failed to save current term: " + errDisk.Error()},
		"a file's page that can't be read": {readLog, "SIGBUS"},
	}
	if w, ok := ways[os.Getenv(way)]; ok {
		t.Fatal(w.end())
	}
	for name, w := range ways {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			other := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestWhatEndsTheProcess$", "-test.timeout=1m")
			other.Env = append(os.Environ(), way+"="+name)
			said, err := other.CombinedOutput()
			if exit := (*exec.ExitError)(nil); !errors.As(err, &exit) || !strings.Contains(string(said), w.says) {
				t.Errorf("%v: %s", err, said)
			}
		})
	}
}
