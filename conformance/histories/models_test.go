package histories

import (
	"fmt"

	"github.com/anishathalye/porcupine"
)

// access reads or writes a register.
type access struct {
	register string
	write    bool
	value    string // that is written, or was read
}

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
			if a.write {
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
