package histories

import (
	"fmt"
	"math/rand/v2"
	"strconv"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
)

// access reads or writes a register.
type access struct {
	register string
	write    bool
	value    string // that is written, or was read
}

// anything is the value of a register of which nothing is known yet.
const anything = "\x00"

// register is a register by name that holds a string, and is read and written at one moment within
// each call.
func register(initial string) porcupine.Model {
	return porcupine.Model{
		Partition: func(history []porcupine.Operation) [][]porcupine.Operation {
			by := map[string][]porcupine.Operation{}
			for _, op := range history {
				name := op.Input.(access).register
				by[name] = append(by[name], op)
			}
			var parts [][]porcupine.Operation
			for _, part := range by {
				parts = append(parts, part)
			}
			return parts
		},
		Init: func() any { return initial },
		Step: func(state, input, _ any) (bool, any) {
			a := input.(access)
			if a.write || state == anything {
				return true, a.value
			}
			return state == a.value, state
		},
		DescribeOperation: func(input, _ any) string {
			if a := input.(access); a.write {
				return fmt.Sprintf("%s := %s", a.register, a.value)
			} else {
				return fmt.Sprintf("%s is %s", a.register, a.value)
			}
		},
	}
}

// forEver is the return of a call of which nobody knows whether it has had its effect.
const forEver = int64(1) << 62

// bounded says more of the writes of unknown outcome, for else each of them could be anywhere in the
// order. Every value is written once. So a write that was read had its effect before the first of
// those reads had ended, and one that was not can as well come after all others: it is left out.
func bounded(history []porcupine.Operation) (out []porcupine.Operation, open int) {
	read := map[access]int64{}
	for _, op := range history {
		if a := op.Input.(access); !a.write {
			if first, known := read[a]; !known || op.Return < first {
				read[a] = op.Return
			}
		}
	}
	for _, op := range history {
		if op.Return == forEver {
			open++
			a := op.Input.(access)
			a.write = false
			first, known := read[a]
			if !known {
				continue
			}
			op.Return = max(op.Call, first)
		}
		out = append(out, op)
	}
	return out, open
}

const window = int64(30 * time.Second)

// windows cuts a history into parts that porcupine can do, of which each begins in the middle of the one
// before. The rule:
//
//   - A write belongs to every window that it overlaps, however long it takes, if a read of that window
//     has read it. One that was not read there is left out: it could only be in the way.
//   - A read belongs to every window that it lies within. One that reaches over a cut may be explained
//     by a write that ended before, of which the window knows nothing. But no read takes longer than
//     half a window: each lies within one.
//   - The first window begins with the initial value. Each other begins with any value: what is read
//     first of all decides, unless it was written in the window.
//
// If the whole has an order that explains it, so has each part, by the same order. Look at a read of the
// part, and at the write before it that it has read. If the part has that write, it has nothing in
// between either. If not, the write ended before the window began. Then no write of the part comes before
// it, for each of these was read after the window began, and before the next write. And no other read of
// the part has another value from before the window, for the same reason. So these reads come first of
// all, and have one value.
//
// It takes every write that was read to be in the history. A write of unknown outcome has to be there
// with the earliest and the latest that it can have had its effect: see learn. None is missing if a
// consistent status is learnt from after the last read of all: see settle.
func windows(history []porcupine.Operation, length int64) (parts [][]porcupine.Operation) {
	end := int64(0)
	for _, op := range history {
		if !op.Input.(access).write {
			end = max(end, op.Return)
		}
	}
	for start := int64(0); start == 0 || start+length/2 < end; start += length / 2 {
		var part []porcupine.Operation
		read := map[string]bool{}
		for _, op := range history {
			if a := op.Input.(access); !a.write && op.Call >= start && op.Return <= start+length {
				part = append(part, op)
				read[a.value] = true
			}
		}
		for _, op := range history {
			if a := op.Input.(access); a.write && read[a.value] && op.Call <= start+length && op.Return >= start {
				part = append(part, op)
			}
		}
		parts = append(parts, part)
	}
	return parts
}

// A history that was made by an order is right in each of its windows, also if calls take long and reach
// over many cuts.
func TestWindowsKeepWhatIsRight(t *testing.T) {
	const length = 100
	for seed := range uint64(100) {
		random := rand.New(rand.NewPCG(seed, 0))
		current, written := "0", 0
		var history []porcupine.Operation
		for now := int64(0); now < 10*length; now += 1 + random.Int64N(8) {
			op := porcupine.Operation{ClientId: len(history), Call: now, Return: now}
			long := int64(length / 3)
			a := access{"active", random.IntN(10) == 0, current}
			if a.write {
				written++
				current = strconv.Itoa(written)
				a.value, long = current, 3*length
			}
			op.Call, op.Return = max(0, now-random.Int64N(long)), now+random.Int64N(long)
			if a.write && random.IntN(3) == 0 {
				op.Return = forEver
			}
			op.Input = a
			history = append(history, op)
		}
		initial := "0"
		for i, part := range windows(history, length) {
			if i > 0 {
				initial = anything
			}
			known, _ := bounded(part)
			if !porcupine.CheckOperations(register(initial), known) {
				t.Errorf("seed %d: part %d has no order", seed, i+1)
			}
		}
	}
}

func TestWindowsKeepWhatIsWrong(t *testing.T) {
	op := func(write bool, value string, call, end int64) porcupine.Operation {
		return porcupine.Operation{Input: access{"active", write, value}, Call: call, Return: end}
	}
	right := []porcupine.Operation{
		op(false, "a", 1, 2), op(true, "b", 3, 12), op(false, "a", 4, 5), op(false, "b", 6, 14),
		op(false, "b", 15, 16), op(true, "c", 21, 22), op(false, "c", 23, 24), op(false, "c", 31, 32),
	}
	for name, test := range map[string]struct {
		history []porcupine.Operation
		want    bool
	}{
		"right": {right, true},
		"a long write": {append(right[:len(right):len(right)], // d, then e, and the window begins at 40
			op(true, "d", 34, 42), op(true, "e", 36, 38), op(false, "e", 43, 44)), true},
		"the first is wrong": {append([]porcupine.Operation{op(false, "c", 0, 1)}, right...), false},
		"a stale one":        {append(right[:len(right):len(right)], op(false, "b", 25, 26)), false},
		"the last of all":    {append(right[:len(right):len(right)], op(false, "b", 34, 36)), false},
		"back and forth":     {append(right[:len(right):len(right)], op(false, "b", 33, 34), op(false, "c", 35, 36)), false},
	} {
		got := true
		parts := windows(test.history, 10)
		for i, part := range parts {
			initial := anything
			if i == 0 {
				initial = "a"
			}
			got = got && porcupine.CheckOperations(register(initial), part)
		}
		if got != test.want || len(parts) < 5 {
			t.Errorf("%s: %v in %d parts, want %v", name, got, len(parts), test.want)
		}
	}
}
