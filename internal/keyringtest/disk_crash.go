package keyringtest

import (
	"bytes"
	"cmp"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
)

// Loss is what a crash does to what was not synced.
type Loss int

const (
	Kept      Loss = iota // all of it had reached the disk
	Dropped               // none of it had
	Reordered             // some of it had, in any order: each change of a name, each file's content
	Torn                  // all names had, and of each file's content a beginning, cut off or followed by zeros
)

// Losses are all of them.
var Losses = []Loss{Kept, Dropped, Reordered, Torn}

// String is the name of the constant.
func (l Loss) String() string {
	names := []string{"Kept", "Dropped", "Reordered", "Torn"}
	if l < 0 || int(l) >= len(names) {
		return fmt.Sprintf("Loss(%d)", int(l))
	}
	return names[l]
}

// Crash returns the disk as the next start would find it if the power failed now.
// It leaves d as it is, so that one moment can be tried with every Loss and many
// seeds; the seed picks what Reordered and Torn leave to chance. The new Disk is
// closed, and has no hook.
//
// Reordered follows a file system without a journal: of the unsynced changes to
// names any may be missing. A rename may have set the new name without having
// deleted the old, but not the reverse: no file system we run on loses a file so.
func (d *Disk) Crash(how Loss, seed uint64) *Disk {
	d.mu.Lock()
	defer d.mu.Unlock()
	chance := rand.New(rand.NewPCG(seed, seed))
	names := d.survivingNames(how, chance)
	after := NewDisk()
	after.inodes = d.inodes
	survivors := map[*inode]*inode{nil: nil}
	for _, node := range distinct(names) {
		data := node.survivingData(how, chance)
		survivors[node] = &inode{id: node.id, mode: node.mode, data: data, synced: len(data)}
	}
	for name, node := range names {
		after.names[name] = survivors[node]
	}
	after.synced = maps.Clone(after.names)
	return after
}

func (d *Disk) survivingNames(how Loss, chance *rand.Rand) map[string]*inode {
	switch how {
	case Dropped:
		return d.synced
	case Reordered:
		return d.reorderedNames(chance)
	default:
		return d.names
	}
}

// reorderedNames applies any of the changes to the synced names, in their order: of
// two changes of one name that have both reached the disk, the later counts.
func (d *Disk) reorderedNames(chance *rand.Rand) map[string]*inode {
	names := maps.Clone(d.synced)
	for _, c := range d.changes {
		switch chance.IntN(3) {
		case 0:
			c.apply(names)
		case 1:
			change{set: c.set, node: c.node}.apply(names)
		}
	}
	return names
}

// distinct returns the inodes in order of their creation: their names may be
// random, and what a seed means must not depend on that.
func distinct(names map[string]*inode) []*inode {
	nodes := slices.SortedFunc(maps.Values(names), func(a, b *inode) int { return cmp.Compare(a.id, b.id) })
	return slices.Compact(nodes)
}

func (n *inode) survivingData(how Loss, chance *rand.Rand) []byte {
	kept, unsynced := slices.Clone(n.data[:n.synced]), n.data[n.synced:]
	switch {
	case how == Kept, how == Reordered && chance.IntN(2) == 0:
		return append(kept, unsynced...)
	case how == Torn:
		return append(kept, torn(unsynced, chance)...)
	default:
		return kept
	}
}

func torn(data []byte, chance *rand.Rand) []byte {
	n := chance.IntN(len(data) + 1)
	if chance.IntN(2) == 0 {
		return data[:n]
	}
	return slices.Concat(data[:n], bytes.Repeat([]byte{0}, len(data)-n))
}
