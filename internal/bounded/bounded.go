// Package bounded decodes JSON that comes from another server, a backup or a file, into types that say how much they may
// hold. JSON that holds more is refused before anything is allocated for it: otherwise a few bytes of JSON could become
// many times as many in memory, as {} does in a list of structs. The package is pure.
//
// # Bounds
//
// The tag bound of a field says how much may be in it, and in all that lies below it:
//
//	Servers []string `json:"servers" bound:"elements=1000,bytes=255"`
//
// elements bounds each list and each map, and bytes each text: a string, a decoded []byte, a json.RawMessage as it is
// written, a key of a map. A tag on a field below replaces the one above. A field that needs a bound and has none is a
// mistake, which [For] finds when the program starts. Numbers, booleans, times and arrays of fixed size need no
// bound.
//
// All lists and maps of a message together have at most [MaxElements] elements, whatever the bounds of each are, because
// the bounds of lists within lists multiply. Members that are ignored, and elements of a json.RawMessage, do not
// count.
//
// # Form
//
// No object has a member twice, or a name that differs from the field's in case only, both of which encoding/json allows.
// Names are written without escapes, a []byte is a string of base64, and all of it is UTF-8. A null stands for an
// absent value.
//
// Errors say where and what is wrong in words of this package, and quote at most a little of the input.
package bounded

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"reflect"
	"unicode/utf8"

	"example.com/keyring/internal/strictjson"
)

// ErrBound is matched by errors about JSON that holds more than it may.
var ErrBound = errors.New("more than its bound")

// ErrForm is matched by errors about input that is not JSON, or does not have the form of the type.
var ErrForm = errors.New("malformed")

// MaxElements is the most elements that all lists and maps of one message have together.
const MaxElements = 1 << 17

// Type decodes JSON into a T. It comes from For, and its zero value can't be used. It is safe for concurrent use.
type Type[T any] struct {
	most  int
	shape *shape
}

// For returns the decoder for T, which takes at most most bytes of JSON. It panics if a field of T needs a bound and has
// none, or has a type that JSON could fill with anything, such as an interface. So call it to initialize a variable of
// a package.
func For[T any](most int) Type[T] {
	return Type[T]{most, shapeOf(reflect.TypeFor[T](), limits{}, nil)}
}

// Decode decodes data, and refuses members that T does not have.
func (t Type[T]) Decode(data []byte) (T, error) { return t.decode(data, true) }

// DecodeKnown decodes data, and ignores members that T does not have: it is for answers to which a newer build may add
// members.
func (t Type[T]) DecodeKnown(data []byte) (T, error) { return t.decode(data, false) }

func (t Type[T]) decode(data []byte, strict bool) (v T, err error) {
	var none T
	if len(data) > t.most {
		return none, fmt.Errorf("%w: %d bytes, at most %d", ErrBound, len(data), t.most)
	}
	if !json.Valid(data) || !utf8.Valid(data) {
		return none, fmt.Errorf("%w: not JSON in UTF-8", ErrForm)
	}
	w := walker{in: strictjson.Scan(data), strict: strict}
	if err := w.value(t.shape); err != nil {
		return none, err
	}
	if err := json.Unmarshal(data, &v); err != nil {
		return none, fmt.Errorf("%w: %.200s", ErrForm, err.Error())
	}
	return v, nil
}

// Gunzip decompresses b. The result may have at most most bytes, and at most 64 for each byte of b and 64 KiB: only data
// that is made for it shrinks further. Nothing may follow in b, not even another, empty gzip member.
func Gunzip(b []byte, most int) ([]byte, error) {
	most = min(most, 64<<10+64*len(b))
	r := bytes.NewReader(b)
	z, err := gzip.NewReader(r)
	if err != nil {
		return nil, fmt.Errorf("%w: gzip: %w", ErrForm, err)
	}
	z.Multistream(false)
	all, err := io.ReadAll(io.LimitReader(z, int64(most)+1)) // to the end, where the checksum is
	if err != nil {
		return nil, fmt.Errorf("%w: gzip: %w", ErrForm, err)
	}
	if len(all) > most {
		return nil, fmt.Errorf("%w: %d bytes of gzip are more than %d", ErrBound, len(b), most)
	}
	if r.Len() > 0 {
		return nil, fmt.Errorf("%w: %d bytes follow what is compressed", ErrForm, r.Len())
	}
	return all, nil
}
