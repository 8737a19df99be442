package bounded

import (
	"encoding"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"
)

// kind is the kind of JSON value that is expected.
type kind uint8

const (
	scalar kind = iota // a number or a boolean
	text               // a string
	raw                // anything
	list
	object
	dictionary // an object whose members are the keys of a map
)

// shape is what JSON has to look like for a type.
type shape struct {
	kind   kind
	most   int      // bytes of a text or of raw JSON; elements of a list or a dictionary
	keys   int      // bytes of a dictionary's keys
	elem   *shape   // of a list, of a dictionary
	fields []member // of an object
}

// member is a member of an object.
type member struct {
	name  string
	shape *shape
}

// limits are the bounds of a tag. Zero is none.
type limits struct{ elements, bytes int }

var (
	timeType = reflect.TypeFor[time.Time]()
	rawType  = reflect.TypeFor[json.RawMessage]()
	textType = reflect.TypeFor[encoding.TextUnmarshaler]()
	jsonType = reflect.TypeFor[json.Unmarshaler]()
)

// maxTime is more bytes than the text of a time has in any zone.
const maxTime = 64

// shapeOf returns the shape of a type, and panics if the type can't be bounded. within are the types around t.
func shapeOf(t reflect.Type, l limits, within []reflect.Type) *shape {
	if slices.Contains(within, t) {
		panic(fmt.Sprintf("bounded: %v contains itself", t))
	}
	within = append(slices.Clip(within), t)
	switch {
	case t == timeType:
		return &shape{kind: text, most: maxTime}
	case t == rawType:
		return &shape{kind: raw, most: need(l.bytes, "bytes", within)}
	case t.Kind() == reflect.Pointer:
		return shapeOf(t.Elem(), l, within)
	case reflect.PointerTo(t).Implements(jsonType):
		panic(fmt.Sprintf("bounded: %v decodes by itself", t))
	case reflect.PointerTo(t).Implements(textType) && t.Kind() == reflect.Array:
		return &shape{kind: text, most: 4 * t.Len()} // hexadecimal digits, a UUID
	case reflect.PointerTo(t).Implements(textType):
		return &shape{kind: text, most: need(l.bytes, "bytes", within)}
	}
	switch t.Kind() {
	case reflect.Bool, reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64, reflect.Uint,
		reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64, reflect.Float32, reflect.Float64:
		return &shape{kind: scalar}
	case reflect.String:
		return &shape{kind: text, most: need(l.bytes, "bytes", within)}
	case reflect.Slice:
		if t.Elem().Kind() == reflect.Uint8 {
			return &shape{kind: text, most: base64.StdEncoding.EncodedLen(need(l.bytes, "bytes", within))}
		}
		return &shape{kind: list, most: need(l.elements, "elements", within), elem: shapeOf(t.Elem(), l, within)}
	case reflect.Array:
		return &shape{kind: list, most: t.Len(), elem: shapeOf(t.Elem(), l, within)}
	case reflect.Map:
		return &shape{kind: dictionary, most: need(l.elements, "elements", within),
			keys: need(l.bytes, "bytes", within), elem: shapeOf(t.Elem(), l, within)}
	case reflect.Struct:
		return &shape{kind: object, fields: membersOf(t, l, within)}
	}
	panic(fmt.Sprintf("bounded: %v can hold anything", t))
}

func need(n int, what string, within []reflect.Type) int {
	if n == 0 {
		panic(fmt.Sprintf("bounded: no bound of %s for the last of %v", what, within))
	}
	return n
}

// membersOf returns the members of a struct as encoding/json does, for the types that are decoded here.
func membersOf(t reflect.Type, l limits, within []reflect.Type) (all []member) {
	for i := range t.NumField() {
		f := t.Field(i)
		name, options, _ := strings.Cut(f.Tag.Get("json"), ",")
		if name == "-" || !f.IsExported() && !f.Anonymous {
			continue
		}
		if slices.Contains(strings.Split(options, ","), "string") {
			panic(fmt.Sprintf("bounded: %v.%s is a string that holds a value", t, f.Name))
		}
		bounds := l.with(f.Tag.Get("bound"))
		if f.Anonymous && name == "" && f.Type.Kind() == reflect.Struct {
			all = append(all, membersOf(f.Type, bounds, append(slices.Clip(within), f.Type))...)
			continue
		}
		if name == "" {
			name = f.Name
		}
		all = append(all, member{name, shapeOf(f.Type, bounds, within)})
	}
	if len(all) > 64 {
		panic(fmt.Sprintf("bounded: %v has %d members, at most 64 are followed", t, len(all)))
	}
	return all
}

// with returns the limits with those that a tag sets.
func (l limits) with(tag string) limits {
	if tag == "" {
		return l
	}
	for _, part := range strings.Split(tag, ",") {
		what, number, _ := strings.Cut(part, "=")
		n, err := strconv.Atoi(number)
		switch {
		case err != nil || n < 1:
			panic(fmt.Sprintf("bounded: tag %q: no number", tag))
		case what == "elements":
			l.elements = n
		case what == "bytes":
			l.bytes = n
		default:
			panic(fmt.Sprintf("bounded: tag %q: unknown bound", tag))
		}
	}
	return l
}
