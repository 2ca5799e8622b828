// How much of queries and keys meets at a time, and how that lies.

#pragma once

#include "common.h"

constexpr int kCell = 16;        // keys
constexpr int kBlock = 16;       // cells
constexpr int kTile = 6;         // rows whose scores are computed together
constexpr int kRows = 96;        // rows that walk over the keys together
constexpr int kMaxHead = 256;

typedef float Scores[kBlock * kCell];  // of one query
